-- Stage intake: requests as they come.

-- name: intake_keys
select key_id, role, name, public, scope, valid_from, valid_to from trusted_key

-- name: intake_purposes
select bit, name from purpose

-- name: intake_known_subjects
select distinct subject_ref from image_subject where subject_ref = any(%(subjects)s::text[])

-- name: intake_used_quota
select key_id, count(*) from request
where key_id = any(%(keys)s::text[]) and accepted_at > %(at)s - interval '1 day' group by key_id

-- name: intake_lock
select pg_advisory_xact_lock(1163415637)

-- Plans hold this shared: a hold comes before what they seal, or finds it sealed.
-- name: intake_plan_lock
select pg_advisory_xact_lock(1163415639)

-- name: intake_suppressed
select mac, at, lifted_at from suppressed_subject where mac = any(%(macs)s::bytea[])

-- The times of issue decide, not the order of arrival: what was issued last counts, suppression where both were at once.
-- name: intake_suppress
insert into suppressed_subject as s (mac, at) select * from unnest(%(macs)s::bytea[], %(at)s::timestamptz[])
on conflict (mac) do update set at = greatest(s.at, excluded.at),
    lifted_at = case when s.lifted_at > excluded.at then s.lifted_at end

-- name: intake_lift
update suppressed_subject s set lifted_at = t.at from unnest(%(macs)s::bytea[], %(at)s::timestamptz[]) as t(mac, at)
where s.mac = t.mac and t.at > s.at and t.at > coalesce(s.lifted_at, s.at)

-- name: intake_consent
insert into consent (event_id, subject_ref, purposes, given, at)
select * from unnest(%(ids)s::uuid[], %(subjects)s::text[], %(purposes)s::bigint[], %(given)s::boolean[], %(at)s::timestamptz[])
on conflict do nothing

-- name: intake_insert
insert into request (request_id, type, class, state, subject_ref, purposes, regulation, body, body_digest, key_id, nonce,
                     accepted_at, due, bucket, trace)
select t.request_id, t.type, t.class, t.state, t.subject_ref, t.purposes, t.regulation, t.body, t.body_digest, t.key_id, t.nonce,
       %(at)s, t.due, %(bucket)s, t.trace
from unnest(
    %(ids)s::uuid[], %(types)s::text[], %(classes)s::text[], %(states)s::text[], %(subjects)s::text[], %(purposes)s::bigint[],
    %(regulations)s::text[], %(bodies)s::bytea[], %(digests)s::bytea[], %(key_ids)s::text[], %(nonces)s::text[], %(due)s::timestamptz[],
    %(traces)s::text[]
) as t(request_id, type, class, state, subject_ref, purposes, regulation, body, body_digest, key_id, nonce, due, trace)
on conflict do nothing
returning request_id

-- name: intake_existing
select request_id, body_digest, state from request where request_id = any(%(ids)s::uuid[])

-- name: intake_held_subjects
select distinct subject_ref from hold
where subject_ref = any(%(subjects)s::text[]) and released_at is null and (until is null or until > %(at)s)

-- name: intake_source
select source_no, closed_by from source where name = %(name)s

-- name: intake_close_source
update source set closed_by = %(request_id)s, closed_at = %(at)s where name = %(name)s and closed_by is null

-- name: intake_hold
insert into hold (hold_id, subject_ref, source_no, until, at)
values (%(hold_id)s, %(subject)s, %(source_no)s, %(until)s, %(at)s) on conflict do nothing

-- name: intake_hold_waiting
update request set state = 'held', moved_at = clock_timestamp() where subject_ref = %(subject)s and state = 'accepted'

-- name: intake_hold_ordinals
select string_agg(int8send(ordinal), ''::bytea) from image_subject where subject_ref = %(subject)s

-- name: intake_source_ordinals
select string_agg(int8send(ordinal), ''::bytea) from image where source_no = %(source_no)s

-- name: intake_release
update hold set released_at = coalesce(released_at, %(at)s) where hold_id = %(hold_id)s

-- name: intake_open_sweeps
select s.sweep_id, s.bucket, s.ordinals from sweep s where s.state in ('sealed', 'awaiting-approval', 'published') for update

-- name: intake_begun
select tree, first_chunk, end_chunk from work where sweep_id = %(sweep_id)s and intent_at is not null

-- name: intake_exclude
insert into excluded (sweep_id, tree, reason, cause, indices)
values (%(sweep_id)s, %(tree)s, %(reason)s, %(cause)s, %(indices)s) on conflict do nothing

-- name: intake_cancel
select state, sweep_id, leaf from request where request_id = %(request_id)s for update

-- Executors hold it shared in their intent transaction.
-- name: intake_lock_sweep
select bucket, state, class, scope_digest from sweep where sweep_id = %(sweep_id)s for update

-- name: intake_void_sweep
update sweep set state = 'void', moved_at = clock_timestamp() where sweep_id = %(sweep_id)s

-- name: intake_cancelled_leaves
select leaf from request where sweep_id = %(sweep_id)s and state = 'cancelled' and leaf is not null

-- name: intake_cancelled
update request set state = 'cancelled', moved_at = clock_timestamp() where request_id = %(request_id)s

-- name: intake_approving
select k.name, r.sweep_id, s.scope_digest, s.state
from request r join trusted_key k using (key_id) left join sweep s using (sweep_id)
where r.request_id = %(request_id)s for update of r

-- name: intake_approved_before
select from approval where request_id = %(request_id)s and key_id = %(key_id)s and scope_root = %(scope_root)s

-- name: intake_approve
insert into approval (request_id, key_id, scope_root, at)
values (%(request_id)s, %(key_id)s, %(scope_root)s, %(at)s) on conflict do nothing

-- name: intake_approvers
select min(a.key_id) from approval a join trusted_key k using (key_id)
where a.request_id = %(request_id)s and a.scope_root = %(scope_root)s group by k.name order by 1

-- name: intake_approved
update sweep set approved_index = %(index)s, moved_at = clock_timestamp()
where sweep_id = %(sweep_id)s and approved_index is null

-- What was carried out stays so, whatever a repeat of it is answered later. One id twice in a batch: the last is kept.
-- name: intake_remember
insert into answer as a (request_id, key_id, type, code, at)
select distinct on (t.request_id, t.key_id) t.request_id, t.key_id, t.type, t.code, %(at)s
from unnest(%(ids)s::uuid[], %(key_ids)s::text[], %(types)s::text[], %(codes)s::text[]) with ordinality
     as t(request_id, key_id, type, code, n)
order by t.request_id, t.key_id, t.code nulls first, t.n desc
on conflict (request_id, key_id) do update set code = excluded.code, type = excluded.type, at = excluded.at
    where a.code is not null
