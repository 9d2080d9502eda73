// @modelcontextprotocol/sdk 1.x with its client-credentials providers. Its newest protocol version is 2025-11-25.
import * as providers from '@modelcontextprotocol/sdk/client/auth-extensions.js';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { CLIENT_INFO, credentialsProvider, readAgent, recordingFetch, serve } from './session.mjs';

const agent = await readAgent();
const authProvider = credentialsProvider(providers, agent);
const transport = new StreamableHTTPClientTransport(new URL(agent.resource), { authProvider, fetch: recordingFetch });
const client = new Client(CLIENT_INFO);
await client.connect(transport);
await serve(client, transport.protocolVersion);
