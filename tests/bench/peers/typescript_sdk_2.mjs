// The TypeScript SDK's server 2.x on node:http, stateless in both protocol versions: JSON responses, tokens verified
// with jose. Argument: JSON with port, issuer and resource.
import { createServer } from 'node:http';
import { toNodeHandler } from '@modelcontextprotocol/node';
import {
  createMcpHandler,
  McpServer,
  OAuthError,
  OAuthErrorCode,
  requireBearerAuth,
  WebStandardStreamableHTTPServerTransport,
} from '@modelcontextprotocol/server';
import { z } from 'zod';
import { identify, TOOL, verifierOf } from './identity.mjs';

class InvalidToken extends OAuthError {
  constructor(message) {
    super(OAuthErrorCode.InvalidToken, message);
  }
}

const options = JSON.parse(process.argv[2]);
const verifier = verifierOf(options, InvalidToken);
const authenticate = requireBearerAuth({ verifier, expectedResource: new URL(options.resource) });

const tool = { ...TOOL, outputSchema: z.object(TOOL.outputSchema) };

function createMcpServer() {
  const server = new McpServer({ name: 'bench', version: '1' });
  server.registerTool('whoami', tool, (ctx) => identify({ authInfo: ctx.http.authInfo }));
  return server;
}

const handler = createMcpHandler(createMcpServer, { responseMode: 'json' });

// The handler answers 2025-11-25 by event streams. The transport that it uses for them can answer with JSON.
async function answerLegacy(request, authInfo) {
  const transport = new WebStandardStreamableHTTPServerTransport({
    sessionIdGenerator: undefined,
    enableJsonResponse: true,
  });
  await createMcpServer().connect(transport);
  return transport.handleRequest(request, { authInfo });
}

const serve = toNodeHandler({
  async fetch(request) {
    const authInfo = await authenticate(request);
    if (authInfo instanceof Response) return authInfo;
    const modern = request.headers.get('mcp-protocol-version') === '2026-07-28';
    return modern ? handler.fetch(request, { authInfo }) : answerLegacy(request, authInfo);
  },
});
createServer(serve).listen(options.port, '127.0.0.1');
