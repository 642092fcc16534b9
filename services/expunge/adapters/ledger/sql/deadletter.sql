-- Dead letters: what was given up, until somebody retries or drops it.

-- name: deadletter_list
select id, worker, event_id, topic, partition, "offset", reason, at from dead_letter order by id limit %(limit)s

-- name: deadletter_sealed
select topic, partition, "offset", sealed from dead_letter where id = %(id)s

-- name: deadletter_retry
with letter as (delete from dead_letter where id = %(id)s returning *)
insert into retry (worker, event_id, scope, topic, partition, "offset", sealed, reason, not_before)
select worker, %(event_id)s, %(event_id)s, topic, partition, "offset", sealed, reason, clock_timestamp() from letter

-- name: deadletter_drop
delete from dead_letter where id = %(id)s
