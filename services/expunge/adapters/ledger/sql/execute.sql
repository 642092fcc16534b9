-- Work orders as executors and the rescanner see them: claims, intent, exclusions, leases, outcomes.
-- Orders travel as parallel arrays; `n` (from 1) is an order's place in them.

-- With the sweeps that hold some of the same artifacts.
-- name: execute_sweeps
select sweep_id, state, bucket, scope_digest, scope_index, file_digest, class, trees,
    array(select other_id from overlapping o where o.sweep_id = s.sweep_id)
from sweep s where sweep_id = any(%(sweeps)s::uuid[])

-- name: execute_lock_sweeps
select sweep_id, state, bucket, scope_digest, scope_index, file_digest, class, trees from sweep
where sweep_id = any(%(sweeps)s::uuid[]) order by sweep_id for share

-- name: execute_work
select o.n, w.step, w.attempt
from unnest(%(sweeps)s::uuid[], %(trees)s::smallint[], %(firsts)s::integer[], %(ends)s::integer[])
    with ordinality as o(sweep_id, tree, first_chunk, end_chunk, n)
join work w on (w.sweep_id, w.tree, w.first_chunk, w.end_chunk) = (o.sweep_id, o.tree, o.first_chunk, o.end_chunk)

-- The row lock under which a hold or a cancel decides whether it came before the intent.
-- name: execute_lock_work
select o.n, w.step, w.attempt
from unnest(%(sweeps)s::uuid[], %(trees)s::smallint[], %(firsts)s::integer[], %(ends)s::integer[])
    with ordinality as o(sweep_id, tree, first_chunk, end_chunk, n)
join work w on (w.sweep_id, w.tree, w.first_chunk, w.end_chunk) = (o.sweep_id, o.tree, o.first_chunk, o.end_chunk)
order by w.sweep_id, w.tree, w.first_chunk for update of w

-- name: execute_intent
update work w set intent_at = clock_timestamp()
from unnest(%(sweeps)s::uuid[], %(trees)s::smallint[], %(firsts)s::integer[]) as o(sweep_id, tree, first_chunk)
where (w.sweep_id, w.tree, w.first_chunk) = (o.sweep_id, o.tree, o.first_chunk) and w.intent_at is null

-- name: execute_excluded
select sweep_id, tree, indices from excluded
where (sweep_id, tree) in (select * from unnest(%(sweeps)s::uuid[], %(trees)s::smallint[]))

-- name: execute_history
select o.n, r.chunk, r.step, r.attempt, r.outcomes,
    case when r.step = o.step or (o.step = 'absence' and r.step = 'erase') then r.envelope end
from unnest(%(sweeps)s::uuid[], %(trees)s::smallint[], %(firsts)s::integer[], %(ends)s::integer[], %(steps)s::text[])
    with ordinality as o(sweep_id, tree, first_chunk, end_chunk, step, n)
join outcome r on r.sweep_id = o.sweep_id and r.tree = o.tree and r.chunk >= o.first_chunk and r.chunk < o.end_chunk

-- name: execute_put
insert into outcome (sweep_id, tree, chunk, step, attempt, outcomes, envelope)
select * from unnest(%(sweeps)s::uuid[], %(trees)s::smallint[], %(chunks)s::integer[], %(steps)s::text[],
    %(attempts)s::integer[], %(outcomes)s::bytea[], %(envelopes)s::bytea[])
on conflict do nothing

-- A lease that ran out, or is ours already, is taken under a new and higher token; also one that is longer than any that
-- is asked for, because a clock was wrong when it was given. Sorted, against deadlocks.
-- name: execute_lease
insert into unit_lease as l (store, unit, token, holder, lease_until)
select o.store, o.unit, nextval('fence'), %(holder)s, clock_timestamp() + make_interval(secs => %(seconds)s::float8)
from unnest(%(stores)s::text[], %(units)s::text[]) as o(store, unit) order by o.store, o.unit
on conflict (store, unit) do update
set token = excluded.token, holder = excluded.holder, lease_until = excluded.lease_until
where l.holder = excluded.holder or l.lease_until < clock_timestamp() or l.lease_until > clock_timestamp() + interval '1 hour'
returning store, unit, token

-- name: execute_renew
update unit_lease set lease_until = clock_timestamp() + make_interval(secs => %(seconds)s::float8)
where token = any(%(tokens)s::bigint[]) and holder = %(holder)s

-- name: execute_release
delete from unit_lease where token = any(%(tokens)s::bigint[]) and holder = %(holder)s

-- A task that ended without a result (its order was refused then) is opened again.
-- name: execute_defer
insert into task (kind, key, input, not_before)
select %(kind)s, o.key, o.input::jsonb, clock_timestamp() + make_interval(secs => %(seconds)s::float8)
from unnest(%(keys)s::text[], %(inputs)s::text[]) as o(key, input)
on conflict (kind, key) do update set done_at = null, attempts = 0, not_before = excluded.not_before
where task.done_at is not null

-- name: execute_blocked
insert into blocked (sweep_id, until) select * from unnest(%(sweeps)s::uuid[], %(until)s::timestamptz[])
on conflict (sweep_id) do update set until = greatest(blocked.until, excluded.until)
