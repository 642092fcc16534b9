-- Stage dispatch: published scopes become work, and each run of chunks goes from step to step.

-- name: dispatch_publishable
select sweep_id, class, state, scope_digest, images, trees, scope_index, sealed_at, approved_index,
       case when class = 'people' then ordinals end
from sweep
where (state = 'sealed' and scope_index < %(size)s)
   or (state = 'awaiting-approval' and approved_index is not null and approved_index < %(size)s)
order by scope_index for update

-- name: dispatch_attested
select coalesce((select max(size) from log_checkpoint where attested), 0),
       coalesce((select cosigned from log_checkpoint where note is not null order by size desc limit 1), 0)

-- name: dispatch_published_size
select coalesce(max(size), 0) from log_checkpoint where note is not null

-- name: dispatch_set_state
update sweep set state = %(state)s, moved_at = clock_timestamp(),
    published_at = case when %(state)s = 'published' then %(at)s else published_at end,
    taint = case when %(state)s = 'published' then 'ordered' else taint end
where sweep_id = any(%(ids)s::uuid[])

-- name: dispatch_request_of
select request_id from request where sweep_id = %(sweep_id)s order by leaf limit 1

-- name: dispatch_start
update work w set step = 'presence', ordered_at = clock_timestamp()
where sweep_id = any(%(ids)s::uuid[]) and step = 'waiting'
returning sweep_id, tree, first_chunk, end_chunk

-- name: dispatch_trees
select sweep_id, trees from sweep where sweep_id = any(%(ids)s::uuid[])

-- name: dispatch_done_outcomes
select o.sweep_id, o.tree, o.chunk, o.step, o.attempt, o.envelope, o.outcomes
from unnest(%(sweeps)s::uuid[], %(trees)s::smallint[], %(steps)s::text[], %(attempts)s::integer[], %(first)s::integer[], %(end)s::integer[])
     as t(sweep_id, tree, step, attempt, first, stop)
join outcome o on o.sweep_id = t.sweep_id and o.tree = t.tree and o.step = t.step and o.attempt = t.attempt
              and o.chunk >= t.first and o.chunk < t.stop
where o.log_index is null
order by o.sweep_id, o.tree, array_position(array['presence', 'hide', 'erase', 'absence'], o.step), o.chunk

-- name: dispatch_logged
update outcome o set log_index = t.log_index
from unnest(%(sweeps)s::uuid[], %(trees)s::smallint[], %(chunks)s::integer[], %(steps)s::text[], %(attempts)s::integer[], %(indices)s::bigint[])
     as t(sweep_id, tree, chunk, step, attempt, log_index)
where o.sweep_id = t.sweep_id and o.tree = t.tree and o.chunk = t.chunk and o.step = t.step and o.attempt = t.attempt

-- name: dispatch_runs
select w.sweep_id, w.tree, w.first_chunk, w.end_chunk, w.step, w.attempt
from work w join (select unnest(%(sweeps)s::uuid[]) s, unnest(%(trees)s::smallint[]) t, unnest(%(first)s::integer[]) f) x
  on w.sweep_id = x.s and w.tree = x.t and w.first_chunk = x.f
order by w.sweep_id, w.tree, w.first_chunk for update of w

-- name: dispatch_absence
select chunk, outcomes from outcome
where sweep_id = %(sweep_id)s and tree = %(tree)s and step = 'absence' and chunk >= %(first)s and chunk < %(end)s
order by chunk, attempt

-- name: dispatch_advance
update work w set step = t.step, attempt = t.attempt, ordered_at = clock_timestamp(),
    not_before = case when t.delay > 0 then clock_timestamp() + make_interval(secs => t.delay) end
from unnest(%(sweeps)s::uuid[], %(trees)s::smallint[], %(first)s::integer[], %(steps)s::text[], %(attempts)s::integer[], %(delays)s::float8[])
     as t(sweep_id, tree, first, step, attempt, delay)
where w.sweep_id = t.sweep_id and w.tree = t.tree and w.first_chunk = t.first

-- Runs that wait for their time to come, and runs that have not moved: ordered again, which repeats nothing. So are runs
-- that a clock which was wrong has dated ahead.
-- name: dispatch_stalled
select sweep_id, tree, first_chunk, end_chunk, step, attempt from work
where step not in ('done', 'waiting')
  and (ordered_at < clock_timestamp() - make_interval(secs => %(age)s::float8)
       or ordered_at > clock_timestamp() + make_interval(secs => %(age)s::float8))
  and (not_before is null or not_before <= clock_timestamp() or not_before > clock_timestamp() + interval '5 minutes')
order by ordered_at, sweep_id, tree, first_chunk limit 256 for update skip locked

-- Sweeps whose taint was ordered and is not known yet: the order may have been quarantined.
-- name: dispatch_untold
update sweep set moved_at = clock_timestamp()
where state = 'published' and taint = 'ordered'
  and (moved_at < clock_timestamp() - make_interval(secs => %(age)s::float8)
       or moved_at > clock_timestamp() + make_interval(secs => %(age)s::float8))
returning sweep_id

-- name: dispatch_due
select sweep_id, tree, first_chunk, end_chunk, step, attempt from work
where step = 'erase' and attempt > 0
  and (not_before <= clock_timestamp() or not_before > clock_timestamp() + interval '5 minutes')
limit 256 for update skip locked

-- name: dispatch_expired
select sweep_id, scope_digest from sweep
where state = 'awaiting-approval' and approved_index is null and expires_at < %(at)s for update skip locked

-- name: dispatch_void
with gone as (update sweep set state = 'void' where sweep_id = %(sweep_id)s)
update request set state = 'void', moved_at = clock_timestamp() where sweep_id = %(sweep_id)s and state = 'planned'

-- Requests that a hold kept, whose images no hold keeps any more: to be planned again. Orders are looked at one by one.
-- name: dispatch_wake_people
update request r set state = 'accepted', sweep_id = null, leaf = null, data_result = null, data_round = null,
    moved_at = clock_timestamp()
where r.state = 'held' and r.subject_ref is not null and not exists (
    select from hold h where h.released_at is null and (h.until is null or h.until > %(at)s) and (
        h.subject_ref = r.subject_ref
        or exists (select from image_subject mine join image_subject theirs using (ordinal)
                   where mine.subject_ref = r.subject_ref and theirs.subject_ref = h.subject_ref)
        or exists (select from image_subject mine join image i using (ordinal)
                   where mine.subject_ref = r.subject_ref and i.source_no = h.source_no)))

-- name: dispatch_held_orders
select r.request_id, s.ordinals from request r join sweep s using (sweep_id)
where r.state = 'held' and r.subject_ref is null

-- name: dispatch_wake
update request set state = 'accepted', sweep_id = null, leaf = null, data_result = null, data_round = null,
    moved_at = clock_timestamp()
where request_id = any(%(ids)s::uuid[]) and state = 'held'

-- Requests that were certified as blocked, whose blocks are over: to be planned again, for what is left.
-- name: dispatch_wake_blocked
with over as (delete from blocked b where until <= %(at)s and not exists (
    select from request r where r.sweep_id = b.sweep_id and r.state = 'planned') returning sweep_id)
update request r set state = 'accepted', sweep_id = null, leaf = null, data_result = null, data_round = null,
    moved_at = clock_timestamp()
from over where r.sweep_id = over.sweep_id and r.state = 'data-certified' and r.data_result = 'blocked'
