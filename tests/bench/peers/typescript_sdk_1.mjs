// The TypeScript SDK 1.x on Express, as its documentation shows a stateless server: JSON responses, tokens verified
// with jose. Argument: JSON with port, issuer and resource.
import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js';
import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import express from 'express';
import { identify, TOOL, verifierOf } from './identity.mjs';

const options = JSON.parse(process.argv[2]);
const verifier = verifierOf(options, InvalidTokenError);

function createServer() {
  const server = new McpServer({ name: 'bench', version: '1' });
  server.registerTool('whoami', TOOL, identify);
  return server;
}

const app = express();
app.use(requireBearerAuth({ verifier, expectedResource: new URL(options.resource) }));
app.use(express.json());
app.post('/mcp', async (req, res) => {
  const server = createServer();
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined, enableJsonResponse: true });
  res.on('close', () => {
    transport.close();
    server.close();
  });
  await server.connect(transport);
  await transport.handleRequest(req, res, req.body);
});
app.listen(options.port, '127.0.0.1');
