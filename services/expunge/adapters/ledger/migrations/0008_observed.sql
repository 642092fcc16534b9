-- What operators look at: trace context of requests, when checkpoints were attested, results of reconciliations.

-- W3C traceparent of the message that brought the request; random, and only forwarded. A sweep has that of its first request.
alter table request add column trace text;
alter table sweep add column trace text;

alter table log_checkpoint add column attested_at timestamptz;

-- Newest result of each kind of reconciliation: of everything, and of each order's scope.
create table reconciled (
    key         text primary key,            -- 'all', or the order's sweep id
    unaccounted bigint not null,             -- sum of |difference| over sources and kinds
    came_back   bigint not null,             -- leaves of a completely certified scope that were found
    at          timestamptz not null
);
