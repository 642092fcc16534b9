-- Outbox, evidence log rows, delivery bookkeeping: used by every worker.

-- name: outbox_put
insert into outbox (worker, event_id, topic, key, headers, value)
select %(worker)s, t.* from unnest(
    %(ids)s::text[], %(topics)s::text[], %(keys)s::bytea[], %(headers)s::bytea[], %(values)s::bytea[]
) as t
on conflict do nothing

-- name: record_traces
select request_id, trace from request where request_id = any(%(ids)s::uuid[]) and trace is not null
union all
select sweep_id, trace from sweep where sweep_id = any(%(ids)s::uuid[]) and trace is not null

-- name: outbox_take
select id, topic, key, headers, value, event_id from outbox
where ((worker = %(worker)s and at <= clock_timestamp() - make_interval(secs => %(own)s::float8))
       or at < clock_timestamp() - make_interval(secs => %(age)s::float8)
       or at > clock_timestamp() + make_interval(secs => %(age)s::float8))
order by id limit %(limit)s for update skip locked

-- name: outbox_published
delete from outbox where id = any(%(ids)s::bigint[])

-- name: outbox_emitted
delete from outbox o using unnest(%(ids)s::text[], %(topics)s::text[]) as t(event_id, topic)
where o.event_id = t.event_id and o.topic = t.topic

-- name: log_lock
select next from log_head for update

-- With the head locked by a statement before, so that this one sees all that others have appended.
-- name: log_append
with known as (select leaf_hash, index from log_entry where leaf_hash = any(%(hashes)s::bytea[])),
fresh as (
    select t.leaf_hash, t.predicate, t.entry, %(start)s::bigint + row_number() over (order by t.n) - 1 as index
    from unnest(%(hashes)s::bytea[], %(predicates)s::text[], %(entries)s::bytea[]) with ordinality
         as t(leaf_hash, predicate, entry, n)
    where not exists (select from known where known.leaf_hash = t.leaf_hash)
), put as (
    insert into log_entry (index, leaf_hash, predicate, entry) select index, leaf_hash, predicate, entry from fresh
), head as (
    update log_head set next = next + (select count(*) from fresh) where exists (select from fresh)
)
select leaf_hash, index from known union all select leaf_hash, index from fresh

-- Events that were applied before, and those of a scope that something is parked of: whether the one, whether the other.
-- Order is kept behind what a passing fault holds up. What waits for its precondition lets later events pass: one of them
-- may be it.
-- name: delivery_sort
select * from (
    select t.id, a.event_id is not null as applied,
           exists (select from retry r where r.worker = %(worker)s and r.scope = t.scope
                     and r.reason in ('retryable', 'queued')) as waits
    from unnest(%(ids)s::text[], %(scopes)s::text[]) as t(id, scope)
    left join applied_event a on a.worker = %(worker)s and a.event_id = t.id
) as known where applied or waits

-- name: delivery_apply
with fresh as (
    insert into applied_event (worker, event_id) select %(worker)s, unnest(%(ids)s::text[]) on conflict do nothing returning 1
), offsets as (
    insert into consumer_offset (worker, topic, partition, next_offset)
    select %(worker)s, * from unnest(%(topics)s::text[], %(partitions)s::integer[], %(offsets)s::bigint[])
    on conflict (worker, topic, partition) do update set next_offset = excluded.next_offset
    where excluded.next_offset > consumer_offset.next_offset
)
select count(*) from fresh

-- name: delivery_positions
select topic, partition, next_offset from consumer_offset where worker = %(worker)s

-- name: delivery_dead
insert into dead_letter (worker, event_id, topic, partition, "offset", reason, sealed)
select %(worker)s, * from unnest(
    %(ids)s::text[], %(topics)s::text[], %(partitions)s::integer[], %(offsets)s::bigint[], %(reasons)s::text[], %(sealed)s::bytea[]
) on conflict do nothing returning topic, partition, "offset"

-- name: retry_put
insert into retry (worker, event_id, scope, topic, partition, "offset", sealed, reason, not_before)
select %(worker)s, t.id, t.scope, t.topic, t.partition, t."offset", t.sealed, t.reason,
       clock_timestamp() + make_interval(secs => %(delay)s::float8)
from unnest(
    %(ids)s::text[], %(scopes)s::text[], %(topics)s::text[], %(partitions)s::integer[], %(offsets)s::bigint[], %(sealed)s::bytea[],
    %(reasons)s::text[]
) as t(id, scope, topic, partition, "offset", sealed, reason)
on conflict do nothing

-- The attempt counts, and the next one waits, before it is made: so a crash counts too, and no other worker tries at once.
-- No wait is longer than 15 minutes: one that seems to be was set by a clock that was wrong.
-- name: retry_due
with due as (
    select event_id from retry r
    where worker = %(worker)s
      and (not_before <= clock_timestamp() or not_before > clock_timestamp() + interval '20 minutes')
      and not exists (select from retry e where e.worker = r.worker and e.scope = r.scope and e.seq < r.seq
                        and e.reason in ('retryable', 'queued'))
    order by seq limit %(limit)s for update skip locked
)
update retry r set attempts = attempts + 1,
    not_before = clock_timestamp() + make_interval(secs => least(900, 0.25 * power(4, attempts)) * (0.5 + random() / 2))
from due where r.worker = %(worker)s and r.event_id = due.event_id
returning r.event_id, r.topic, r.partition, r."offset", r.sealed, r.attempts, r.seq

-- name: retry_again
update retry set reason = %(reason)s where worker = %(worker)s and event_id = %(id)s

-- name: retry_done
delete from retry where worker = %(worker)s and event_id = any(%(ids)s::text[])

-- name: crash_count
insert into crash (worker, topic, partition, "offset", crashes)
select %(worker)s, t.*, 1 from unnest(%(topics)s::text[], %(partitions)s::integer[], %(offsets)s::bigint[]) as t
on conflict (worker, topic, partition, "offset") do update set crashes = crash.crashes + 1

-- name: crash_clear
delete from crash c using unnest(%(topics)s::text[], %(partitions)s::integer[], %(offsets)s::bigint[]) as t(topic, partition, "offset")
where c.worker = %(worker)s and c.topic = t.topic and c.partition = t.partition and c."offset" = t."offset"

-- name: crash_suspects
select topic, partition, "offset", crashes from crash where worker = %(worker)s
