-- Replay: what the live system says, and tables of what the log says (in a database of their own).

-- name: replay_live_size
select next from log_head

-- name: replay_live_log
select string_agg(leaf_hash, ''::bytea order by index),
       string_agg(sha256('\x00'::bytea || entry), ''::bytea order by index)
from log_entry where index >= %(first)s and index < %(end)s

-- name: replay_live_sweeps
select sweep_id, class, state, requests, images, leaves, trees, scope_digest, scope_index
from sweep where scope_index < %(size)s

-- name: replay_live_rounds
select sweep_id, round, provision, requests, log_index from round where log_index < %(size)s

-- name: replay_live_models
select name, status, metric_void from model

-- name: replay_live_results
select request_id, sweep_id, data_result from request r join sweep s using (sweep_id)
where s.scope_index < (select coalesce(max(size), 0) from log_checkpoint where note is not null)

-- name: replay_tables
select count(*) from information_schema.tables where table_schema = current_schema()

-- name: replay_create_head
create table replay_head (origin text not null, size bigint not null, root bytea not null, images bigint not null,
                          batches bigint not null)

-- name: replay_create_sweep
create table replay_sweep (sweep_id uuid primary key, class text not null, scope_digest bytea not null,
                           scope_index bigint not null, requests bigint not null, images bigint not null,
                           leaves bigint not null, void text)

-- name: replay_create_coverage
create table replay_coverage (sweep_id uuid not null, tree integer not null, step text not null, outcome smallint not null,
                              leaves bigint not null, chunks bigint not null, primary key (sweep_id, tree, step, outcome))

-- name: replay_create_round
create table replay_round (sweep_id uuid not null, round integer not null, provision text not null,
                           requests bigint not null, log_index bigint not null, primary key (sweep_id, round))

-- name: replay_create_model
create table replay_model (name text primary key, status text, metric_void boolean not null, replaced_by text)

-- name: replay_create_registered
create table replay_registered (source text not null, kind text not null, artifacts bigint not null,
                                primary key (source, kind))

-- name: replay_create_result
create table replay_result (sweep_id uuid not null, request_id uuid not null, data_result text,
                            primary key (sweep_id, request_id))

-- name: replay_put_head
insert into replay_head (origin, size, root, images, batches)
values (%(origin)s, %(size)s, %(root)s, %(images)s, %(batches)s)

-- name: replay_put_sweeps
insert into replay_sweep (sweep_id, class, scope_digest, scope_index, requests, images, leaves, void)
select * from unnest(%(sweeps)s::uuid[], %(classes)s::text[], %(digests)s::bytea[], %(indices)s::bigint[],
                     %(requests)s::bigint[], %(images)s::bigint[], %(leaves)s::bigint[], %(voids)s::text[])

-- name: replay_put_rounds
insert into replay_round (sweep_id, round, provision, requests, log_index)
select * from unnest(%(sweeps)s::uuid[], %(rounds)s::integer[], %(provisions)s::text[], %(requests)s::bigint[],
                     %(indices)s::bigint[])

-- name: replay_put_coverage
insert into replay_coverage (sweep_id, tree, step, outcome, leaves, chunks)
select * from unnest(%(sweeps)s::uuid[], %(trees)s::integer[], %(steps)s::text[], %(outcomes)s::smallint[],
                     %(leaves)s::bigint[], %(chunks)s::bigint[])

-- name: replay_put_models
insert into replay_model (name, status, metric_void, replaced_by)
select * from unnest(%(names)s::text[], %(statuses)s::text[], %(voids)s::boolean[], %(successors)s::text[])

-- name: replay_put_registered
insert into replay_registered (source, kind, artifacts)
select * from unnest(%(sources)s::text[], %(kinds)s::text[], %(counts)s::bigint[])

-- name: replay_put_results
insert into replay_result (sweep_id, request_id, data_result)
select * from unnest(%(sweeps)s::uuid[], %(requests)s::uuid[], %(results)s::text[])
