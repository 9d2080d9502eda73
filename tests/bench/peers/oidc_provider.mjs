// node oidc-provider, issuing ES256 access tokens (JWT) for one resource to clients of `client_credentials`.
// Argument: JSON with port, issuer, resource, clients (as RFC 7591 describes them), and `duties`: the path of a database
// for the duties of the authorization server that it is compared with; null for none.
import { generateKeyPairSync } from 'node:crypto';
import { Provider } from 'oidc-provider';

const { port, issuer, resource, clients, duties } = JSON.parse(process.argv[2]);
const jwk = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' });
const configuration = {
  clients,
  jwks: { keys: [{ ...jwk, kid: 'bench', alg: 'ES256', use: 'sig' }] },
  ttl: { ClientCredentials: 300 },
  scopes: ['env:read', 'env:write'],
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  clientAuthMethods: ['client_secret_basic', 'private_key_jwt'],
  enabledJWA: { clientAuthSigningAlgValues: ['ES256'], idTokenSigningAlgValues: ['ES256'] },
  responseTypes: [],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      getResourceServerInfo: () => ({
        scope: 'env:read env:write',
        audience: resource,
        accessTokenTTL: 300,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
};

let added;
if (duties !== null) {
  added = await import('./oidc_provider_duties.mjs').then((module) => module.open(duties, clients));
  configuration.adapter = added.adapter;
  configuration.clients = [];
}
const provider = new Provider(issuer, configuration);
added?.observe(provider);
provider.on('server_error', (_, error) => console.error(error));
provider.listen(port, '127.0.0.1');
