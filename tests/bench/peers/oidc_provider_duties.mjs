// What the compared authorization server does for each token: a log line, and an audit row that is on disk within
// 100 ms. Clients and spent assertions are stored in SQLite, in WAL mode, and a commit waits for the disk.
import { writeSync } from 'node:fs';
import Database from 'better-sqlite3';

const FLUSH_AFTER = 100;

const SCHEMA = `
  CREATE TABLE stored (model TEXT, id TEXT, payload TEXT NOT NULL, expires_at INTEGER, PRIMARY KEY (model, id));
  CREATE TABLE audit_event (
    id INTEGER PRIMARY KEY, time INTEGER NOT NULL, writer TEXT NOT NULL, sequence INTEGER NOT NULL, previous TEXT,
    request_id TEXT, actor TEXT, jti TEXT, action TEXT NOT NULL, object TEXT, outcome TEXT NOT NULL, reason TEXT,
    detail TEXT NOT NULL
  );
  CREATE INDEX audit_time ON audit_event (time);
  CREATE INDEX audit_request_id ON audit_event (request_id);
  CREATE INDEX audit_actor ON audit_event (actor);
  CREATE INDEX audit_jti ON audit_event (jti);
`;

/** Create the database at a path, and store the clients. Returns the adapter, and the observer of a provider. */
export function open(path, clients) {
  const database = new Database(path);
  database.pragma('journal_mode = WAL');
  database.pragma('synchronous = FULL');
  database.exec(SCHEMA);
  const select = database.prepare('SELECT payload, expires_at FROM stored WHERE model = ? AND id = ?');
  const insert = database.prepare('INSERT OR REPLACE INTO stored VALUES (?, ?, ?, ?)');
  const remove = database.prepare('DELETE FROM stored WHERE model = ? AND id = ?');

  const adapter = (model) => ({
    async find(id) {
      const row = select.get(model, id);
      if (row === undefined || (row.expires_at !== null && row.expires_at < Date.now() / 1000)) return undefined;
      return JSON.parse(row.payload);
    },
    async upsert(id, payload, expiresIn) {
      const expiresAt = expiresIn === undefined ? null : Math.floor(Date.now() / 1000) + expiresIn;
      insert.run(model, id, JSON.stringify(payload), expiresAt);
    },
    async destroy(id) {
      remove.run(model, id);
    },
  });
  for (const client of clients) insert.run('Client', client.client_id, JSON.stringify(client), null);

  return { adapter, observe: (provider) => observe(provider, database) };
}

function observe(provider, database) {
  const insert = database.prepare(`INSERT INTO audit_event VALUES (NULL${', ?'.repeat(12)})`);
  const flush = database.transaction((rows) => rows.forEach((row) => insert.run(...row)));
  const writer = crypto.randomUUID();
  let sequence = 0;
  let waiting = [];

  function record(requestId, token) {
    if (waiting.length === 0) {
      setTimeout(() => {
        flush(waiting);
        waiting = [];
      }, FLUSH_AFTER);
    }
    const detail = JSON.stringify({ scope: token.scope, ttl: token.expiration });
    waiting.push([
      ...[Date.now(), writer, (sequence += 1), null, requestId, token.clientId, token.jti],
      ...['token.issue', token.aud, 'allowed', null, detail],
    ]);
  }

  provider.use(async (ctx, next) => {
    const started = performance.now();
    const requestId = crypto.randomUUID();
    ctx.set('X-Request-Id', requestId);
    await next();
    const token = ctx.oidc?.entities?.ClientCredentials;
    const line = {
      timestamp: new Date(), level: 'info', event: 'request', request_id: requestId, method: ctx.method,
      path: ctx.path, status: ctx.status, client_id: token?.clientId, jti: token?.jti,
      ms: Math.round((performance.now() - started) * 10) / 10,
    };
    writeSync(2, `${JSON.stringify(line)}\n`);
    if (token !== undefined) record(requestId, token);
  });
}
