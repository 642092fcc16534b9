-- Tasks: what can exceed a handler's bound, leased with a fencing token, resumed from a cursor.

-- A wait or a lease that is longer than any that is ever asked for was set by a clock that was wrong. Should the holder
-- live after all, its token keeps it from saving anything.
-- name: task_lease
update task set token = token + 1, attempts = attempts + 1,
    lease_until = clock_timestamp() + make_interval(secs => %(seconds)s::float8)
where task_id = (
    select task_id from task
    where kind = any(%(kinds)s::text[]) and done_at is null
      and (not_before <= clock_timestamp() or not_before > clock_timestamp() + interval '1 hour')
      and (lease_until is null or lease_until < clock_timestamp() or lease_until > clock_timestamp() + interval '1 hour')
    order by not_before, task_id limit 1 for update skip locked
)
returning task_id, kind, key, input, cursor, token, attempts

-- name: task_renew
update task set lease_until = clock_timestamp() + make_interval(secs => %(seconds)s::float8)
where task_id = %(task_id)s and token = %(token)s and done_at is null

-- name: task_save
update task set cursor = %(cursor)s::jsonb, attempts = 0
where task_id = %(task_id)s and token = %(token)s and done_at is null

-- name: task_later
update task set lease_until = null,
    not_before = clock_timestamp() + make_interval(secs => %(seconds)s::float8)
where task_id = %(task_id)s and token = %(token)s and done_at is null

-- The cursor holds outcomes; the row stays as the mark that the work was done.
-- name: task_finish
update task set done_at = clock_timestamp(), lease_until = null, cursor = '{}'
where task_id = %(task_id)s and token = %(token)s and done_at is null
