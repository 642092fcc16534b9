-- State gauges (metrics.py), read every few seconds.

-- name: gauge_requests
select class, regulation, state, count(*)::float8 from request group by 1, 2, 3

-- name: gauge_work
select step, count(*)::float8 from work where step <> 'done' group by 1

-- name: gauge_models
select status, count(*)::float8 from model group by 1

-- name: gauge_retraining
select state, count(*)::float8 from retraining group by 1

-- name: gauge_retries
select worker, count(*)::float8 from retry group by 1

-- name: gauge_dead_letters
select worker, count(*)::float8 from dead_letter group by 1

-- name: gauge_oldest
select class, extract(epoch from clock_timestamp() - min(accepted_at))::float8 from request
where state in ('accepted', 'planned', 'held') group by 1

-- name: gauge_deadline
select extract(epoch from least(
    (select min(due) from request where state in ('accepted', 'planned')),
    (select min(due) from taint where resolved_index is null)
))::float8

-- name: gauge_unattested
-- The oldest checkpoint that is published, lacks what others should have said, and is newer than all that have it.
select extract(epoch from clock_timestamp() - min(made_at))::float8 from log_checkpoint
where note is not null and not attested and size > (select coalesce(max(size), -1) from log_checkpoint where attested)

-- name: gauge_outbox
select count(*)::float8 from outbox

-- Artifacts of runs that are not done. A run's last chunk may be short.
-- name: gauge_backlog
select t.tree ->> 'store', sum(least(w.end_chunk * 1024, (t.tree ->> 'leaves')::bigint) - w.first_chunk * 1024)::float8
from work w join sweep s using (sweep_id) cross join lateral (select s.trees -> w.tree::integer as tree) as t
where w.step <> 'done' and s.state <> 'void' group by 1

-- Size of the newest published checkpoint; when one was last attested.
-- name: gauge_log
select (select coalesce(max(size), 0) from log_checkpoint where note is not null),
       (select extract(epoch from max(attested_at)) from log_checkpoint where attested and (cosigned > 0 or token is not null))

-- name: gauge_reconciled
select coalesce(sum(unaccounted) filter (where key = 'all'), 0)::float8, coalesce(sum(came_back), 0)::float8 from reconciled

-- The next end of a key that is still valid and that no key of the same name outlives.
-- name: gauge_keys
select role, extract(epoch from min(valid_to))::float8 from trusted_key k
where valid_to > clock_timestamp() and not exists (
    select from trusted_key o where o.role = k.role and o.name = k.name and o.key_id <> k.key_id
      and (o.valid_to is null or o.valid_to > k.valid_to))
group by 1

-- name: clock
select clock_timestamp()

-- name: ready
select 1

-- name: database_time
select clock_timestamp()
