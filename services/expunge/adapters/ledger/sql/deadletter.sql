-- Dead letters: what was given up, until somebody retries or drops it.

-- name: deadletter_list
select id, worker, event_id, topic, partition, "offset", reason, at, sealed from dead_letter
where (%(worker)s::text is null or worker = %(worker)s) and (%(topic)s::text is null or topic = %(topic)s)
  and (%(reason)s::text is null or reason = %(reason)s) and (%(id)s::bigint is null or id = %(id)s)
order by id limit %(limit)s

-- The store of a work order, by its sweep and tree.
-- name: deadletter_stores
select t.n, s.trees -> t.tree ->> 'store'
from unnest(%(n)s::bigint[], %(sweeps)s::uuid[], %(trees)s::integer[]) as t(n, sweep_id, tree) join sweep s using (sweep_id)

-- name: deadletter_retry
with letter as (delete from dead_letter where id = %(id)s returning *)
insert into retry (worker, event_id, scope, topic, partition, "offset", sealed, reason, not_before)
select worker, %(event_id)s, %(event_id)s, topic, partition, "offset", sealed, reason, clock_timestamp() from letter

-- name: deadletter_drop
delete from dead_letter where id = %(id)s
