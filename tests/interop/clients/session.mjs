// The line protocol of the TypeScript clients, driven by tests/support/interop.py: one JSON line for each call and
// answer.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

export const CLIENT_INFO = { name: 'interop', version: '1' };

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const exchanges = [];

function write(message) {
    console.log(JSON.stringify(message));
}

export async function readAgent() {
    return JSON.parse((await lines.next()).value);
}

// Let a provider send the token of the platform as the grant, without client authentication: the draft extension of MCP
// for workload identity (SEP-1933), for which the SDK has no provider yet.
function asGrant(provider, assertion) {
    provider.addClientAuthentication = undefined;
    provider.prepareTokenRequest = (scope) => {
        const grant = { grant_type: 'urn:ietf:params:oauth:grant-type:jwt-bearer', assertion };
        return new URLSearchParams(scope ? { ...grant, scope } : grant);
    };
    return provider;
}

// Return the provider for the agent's credentials. Versions 1 and 2 of the SDK use the same names.
export function credentialsProvider(
    { ClientCredentialsProvider, PrivateKeyJwtProvider, StaticPrivateKeyJwtProvider },
    agent
) {
    const options = { clientId: agent.client_id, expectedIssuer: agent.issuer };
    if (agent.token_file) {
        const jwtBearerAssertion = readFileSync(agent.token_file, 'ascii');
        const provider = new StaticPrivateKeyJwtProvider({ ...options, jwtBearerAssertion });
        return agent.as_grant ? asGrant(provider, jwtBearerAssertion) : provider;
    }
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
        const text = result.content.map((block) => block.text ?? '').join('');
        return { is_error: Boolean(result.isError), structured_content: result.structuredContent, text };
    } catch (error) {
        return { raised: error.constructor.name, message: error.message, code: error.code, data: error.data };
    }
}

export async function serve(client, protocol) {
    write({ protocol, tools: (await client.listTools()).tools });
    for await (const line of lines) {
        write(await answer(client, JSON.parse(line)));
    }
    write({ exchanges });
    await client.close();
}
