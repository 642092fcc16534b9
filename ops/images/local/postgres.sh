#!/bin/sh
# The part of the public image's contract that docker-compose.yml uses: POSTGRES_USER, POSTGRES_DB,
# POSTGRES_PASSWORD_FILE, PGDATA.
set -eu
if [ "${1:-postgres}" != postgres ]; then exec "$@"; fi
shift || true
: "${POSTGRES_USER:=postgres}" "${POSTGRES_DB:=$POSTGRES_USER}"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  if [ -z "${POSTGRES_PASSWORD:-}" ] && [ -z "${POSTGRES_PASSWORD_FILE:-}" ]; then
    echo "error: expected POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD" >&2
    exit 1
  fi
  mkdir -p "$PGDATA"
  chmod 700 "$PGDATA"
  umask 077
  if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then cat "$POSTGRES_PASSWORD_FILE" >/tmp/pw; else echo "$POSTGRES_PASSWORD" >/tmp/pw; fi
  initdb -D "$PGDATA" -U "$POSTGRES_USER" --auth-local=trust --auth-host=scram-sha-256 --pwfile=/tmp/pw -E UTF8 \
    --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 --no-sync >/tmp/initdb.log || { cat /tmp/initdb.log; exit 1; }
  rm -f /tmp/pw
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl -D "$PGDATA" -w -o "-c listen_addresses='' -c unix_socket_directories=/tmp" -l /tmp/first.log start >/dev/null
  if [ "$POSTGRES_DB" != postgres ]; then
    psql -q -h /tmp -U "$POSTGRES_USER" -d postgres -c "create database \"$POSTGRES_DB\""
  fi
  pg_ctl -D "$PGDATA" -m fast -w stop >/dev/null
fi
# SIGINT is what a fast stop is asked with; `docker stop` sends SIGTERM to an imported image, which waits for clients.
postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp "$@" &
server=$!
trap 'kill -INT $server' TERM INT
wait $server || wait $server
