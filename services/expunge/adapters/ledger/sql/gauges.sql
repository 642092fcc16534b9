-- State gauges (metrics.py), read every few seconds.

-- name: gauge_requests
select class, state, count(*)::float8 from request group by 1, 2

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

-- name: ready
select 1

-- name: database_time
select clock_timestamp()
