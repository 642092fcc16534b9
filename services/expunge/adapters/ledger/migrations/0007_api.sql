-- The read API: its tokens, what was submitted over HTTP under an Idempotency-Key, and intake's answers to requests that
-- leave no row in `request`. Nothing personal: ids, codes, digests of random secrets.

create table api_token (
    token_id   text primary key,
    name       text not null,                -- whose it is, for people
    digest     bytea not null,               -- SHA-256 of the secret, which is 32 random bytes
    scopes     text[] not null,
    publisher  text,                         -- only what keys of this name signed (trusted_key.name); null: everything
    created_at timestamptz not null,
    expires_at timestamptz,
    revoked_at timestamptz
);

create table api_submission (
    token_id    text not null references api_token,
    key_digest  bytea not null,              -- SHA-256 of the Idempotency-Key
    body_digest bytea not null,
    request_id  uuid not null,
    done        boolean not null default false,
    at          timestamptz not null default clock_timestamp(),
    primary key (token_id, key_digest)
);
create index api_submission_at on api_submission (at);

-- What became of rejected requests, and of consents, holds, releases, cancels and approvals.
create table answer (
    request_id uuid not null,
    key_id     text not null,                -- who asked: two publishers may have used one id
    type       text,                         -- null where the payload could not be read
    code       text,                         -- why it was rejected; null: it was accepted and has been carried out
    at         timestamptz not null,
    primary key (request_id, key_id)
);

-- Pages of requests, oldest first.
create unique index request_seq on request (seq);
