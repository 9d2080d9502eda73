// @modelcontextprotocol/client 2.x with its client-credentials providers.
import * as sdk from '@modelcontextprotocol/client';
import { CLIENT_INFO, credentialsProvider, readAgent, recordingFetch, serve } from './session.mjs';

const agent = await readAgent();
const authProvider = credentialsProvider(sdk, agent);
const url = new URL(agent.resource);
const transport = new sdk.StreamableHTTPClientTransport(url, { authProvider, fetch: recordingFetch });
const mode = agent.protocol === '2025-11-25' ? 'legacy' : { pin: agent.protocol };
const client = new sdk.Client(CLIENT_INFO, { versionNegotiation: { mode } });
await client.connect(transport);
await serve(client, client.getNegotiatedProtocolVersion());
