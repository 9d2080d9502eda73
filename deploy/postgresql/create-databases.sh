#!/bin/sh
# Creates a role and a database for each server, which no other role may use: anyone who may connect to a database can
# hold its advisory locks, and block its server. The image of PostgreSQL runs it once, with an empty volume. Elsewhere,
# run it as a superuser of PostgreSQL: SECRETS=/etc/gatehouse deploy/postgresql/create-databases.sh
set -eu
secrets="${SECRETS:-/run/secrets}"
for server in authserver resourceserver; do
    # A secret of compose.yaml has an underscore in its name.
    file="$secrets/$server-password"
    [ -e "$file" ] || file="$secrets/${server}_password"
    # psql itself reads the password: arguments are visible to other users.
    psql --quiet --set ON_ERROR_STOP=1 --dbname postgres <<SQL
\set password \`cat '$file'\`
CREATE ROLE $server LOGIN PASSWORD :'password';
CREATE DATABASE $server OWNER $server;
REVOKE ALL ON DATABASE $server FROM PUBLIC;
SQL
done
