// A session of either TypeScript client as tests/support/interop.py drives it: a line of JSON in for every call to
// make, a line out for every answer.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

export const CLIENT_INFO = { name: 'interop', version: '1' };

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const exchanges = [];

function say(message) {
    console.log(JSON.stringify(message));
}

export async function readAgent() {
    return JSON.parse((await lines.next()).value);
}

// Return the provider for the credentials that an agent holds. Both generations name everything alike.
export function credentialsProvider({ ClientCredentialsProvider, PrivateKeyJwtProvider }, agent) {
    const options = { clientId: agent.client_id, expectedIssuer: agent.issuer };
    if (agent.private_key_file) {
        const privateKey = readFileSync(agent.private_key_file, 'ascii');
        return new PrivateKeyJwtProvider({ ...options, privateKey, algorithm: 'ES256' });
    }
    return new ClientCredentialsProvider({ ...options, clientSecret: agent.client_secret });
}

export async function recordingFetch(url, init) {
    const response = await fetch(url, init);
    exchanges.push([init?.method ?? 'GET', new URL(url).pathname, response.status]);
    return response;
}

async function answer(client, { tool, arguments: args }) {
    try {
        const result = await client.callTool({ name: tool, arguments: args });
        return { is_error: Boolean(result.isError), structured_content: result.structuredContent };
    } catch (error) {
        return { raised: error.constructor.name, message: error.message, code: error.code, data: error.data };
    }
}

export async function serve(client, protocol) {
    say({ protocol, tools: (await client.listTools()).tools });
    for await (const line of lines) {
        say(await answer(client, JSON.parse(line)));
    }
    say({ exchanges });
    await client.close();
}
