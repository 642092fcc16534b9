-- The blast-radius breaker (expunge.breaker), and when artifacts that a store would not give up may go.

-- A scope is `store:NAME` or `source:NAME`. Open from `opened_at` until a person closes it.
create table breaker (
    scope     text primary key,
    counted   bigint not null,               -- what the hour would have come to
    cap       bigint not null,
    opened_at timestamptz not null,
    closed_at timestamptz,
    closed_size bigint,                      -- log entries there were then: scopes among them may go
    closing   bytea                          -- DSSE envelope that closed it, by an approver's key
);
create table breaker_spent (
    scope     text not null,
    at        timestamptz not null,
    artifacts bigint not null                -- images, where the scope is a source
);
create index breaker_spent_scope on breaker_spent (scope, at);

create table blocked (
    sweep_id uuid primary key,
    until    timestamptz not null            -- the last block of the sweep that says when it ends
);
create index blocked_until on blocked (until);
