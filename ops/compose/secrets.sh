#!/bin/sh
# Draws the passwords of docker-compose.yml into secrets/ (or EXPUNGE_SECRETS), once; changes none that is there.
#
# Containers run as users without a name on this machine, and refuse a secret that everybody can read. As root, each file is
# given to the user that reads it. Otherwise your group may read it, and containers are put into that group: by `make up`, or by
# SECRETS_GROUP=$(id -g) (0 where the engine is rootless).
set -eu
cd "$(dirname "$0")/../.."
directory=${EXPUNGE_SECRETS:-secrets}
mkdir -p "$directory"
chmod 0700 "$directory"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

keep() { # NAME USER TEXT
  file=$directory/$1
  [ -e "$file" ] || printf '%s' "$3" >"$file"
  if [ "$(id -u)" = 0 ]; then
    chown "$2" "$file"
    chmod 0400 "$file"
  else
    chmod 0440 "$file"
  fi
}

keep postgres_password 999:999 "$(random)"
keep expunge_database 999:999 "postgresql://expunge:$(cat "$directory/postgres_password")@postgres:5432/expunge"
keep s3_access_key 999:999 "$(random | cut -c1-20)"
keep s3_secret_key 999:999 "$(random)"
keep grafana_password 472:0 "$(random)"
