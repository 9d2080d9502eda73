// What the peers in TypeScript share: the verification of tokens with jose, and the tool, which returns the caller's
// identity as `whoami` of the directory does.
import { createRemoteJWKSet, jwtVerify } from 'jose';
import { z } from 'zod';

export const TOOL = {
  description: 'Return your identity: your client_id, the scopes and expiry of your token, and your workspace.',
  outputSchema: {
    client_id: z.string(),
    scopes: z.array(z.string()),
    workspace_id: z.string().nullable(),
    expires_at: z.number().int(),
  },
};

/** Return the result of the tool. */
export function identify({ authInfo }) {
  const identity = {
    client_id: authInfo.clientId,
    scopes: [...authInfo.scopes].sort(),
    workspace_id: authInfo.extra.workspace_id ?? null,
    expires_at: authInfo.expiresAt,
  };
  return { content: [{ type: 'text', text: JSON.stringify(identity) }], structuredContent: identity };
}

/** Return the verifier of the access tokens of an issuer for a resource. Its keys are fetched and cached by jose. */
export function verifierOf({ issuer, resource }, InvalidToken) {
  const keys = createRemoteJWKSet(new URL(`${issuer}/.well-known/jwks.json`));
  const checks = { issuer, audience: resource, algorithms: ['ES256'], typ: 'at+jwt' };
  return {
    async verifyAccessToken(token) {
      const { payload } = await jwtVerify(token, keys, checks).catch((error) => {
        throw new InvalidToken(error.message);
      });
      return {
        token,
        clientId: payload.client_id,
        scopes: payload.scope.split(' '),
        expiresAt: payload.exp,
        resource: new URL(payload.aud),
        extra: payload,
      };
    },
  };
}
