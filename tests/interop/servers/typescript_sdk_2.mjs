// A server on the TypeScript SDK 2.x, in both protocol versions. Argument: the port.
import { createServer } from 'node:http';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, fromJsonSchema, McpServer } from '@modelcontextprotocol/server';

const TEXT = fromJsonSchema({ type: 'object', properties: { text: { type: 'string' } }, required: ['text'] });
const notes = [];

function createMcpServer() {
    const server = new McpServer({ name: 'notes', version: '1' });
    server.registerTool(
        'read_notes',
        { description: 'Return all notes.', annotations: { readOnlyHint: true } },
        () => ({ content: [{ type: 'text', text: `${notes.length} notes: ${notes.join(', ')}` }] }),
    );
    server.registerTool('add_note', { description: 'Add a note.', inputSchema: TEXT, outputSchema: TEXT }, ({ text }) => {
        notes.push(text);
        return { content: [{ type: 'text', text: `Added ${text}` }], structuredContent: { text } };
    });
    return server;
}

createServer(toNodeHandler(createMcpHandler(createMcpServer))).listen(Number(process.argv[2]), '127.0.0.1');
