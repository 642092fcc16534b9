-- Stage intake: requests as they come.

-- name: intake_keys
select key_id, role, public, scope, valid_from, valid_to from trusted_key

-- name: intake_purposes
select bit, name from purpose

-- name: intake_known_subjects
select distinct subject_ref from image_subject where subject_ref = any(%(subjects)s::text[])

-- name: intake_used_quota
select key_id, count(*) from request
where key_id = any(%(keys)s::text[]) and accepted_at > %(at)s - interval '1 day' group by key_id

-- name: intake_lock
select pg_advisory_xact_lock(1163415637)

-- name: intake_suppress
insert into suppressed_subject (mac) select unnest(%(macs)s::bytea[])
on conflict (mac) do update set lifted_at = null

-- name: intake_lift
update suppressed_subject set lifted_at = %(at)s where mac = any(%(macs)s::bytea[]) and lifted_at is null

-- name: intake_consent
insert into consent (event_id, subject_ref, purposes, given, at)
select * from unnest(%(ids)s::uuid[], %(subjects)s::text[], %(purposes)s::bigint[], %(given)s::boolean[], %(at)s::timestamptz[])
on conflict do nothing

-- name: intake_insert
insert into request (request_id, type, class, state, subject_ref, purposes, regulation, body, body_digest, key_id, nonce,
                     accepted_at, due, bucket)
select t.request_id, t.type, t.class, t.state, t.subject_ref, t.purposes, t.regulation, t.body, t.body_digest, t.key_id, t.nonce,
       %(at)s, t.due, %(bucket)s
from unnest(
    %(ids)s::uuid[], %(types)s::text[], %(classes)s::text[], %(states)s::text[], %(subjects)s::text[], %(purposes)s::bigint[],
    %(regulations)s::text[], %(bodies)s::bytea[], %(digests)s::bytea[], %(key_ids)s::text[], %(nonces)s::text[], %(due)s::timestamptz[]
) as t(request_id, type, class, state, subject_ref, purposes, regulation, body, body_digest, key_id, nonce, due)
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
update hold set released_at = %(at)s where hold_id = %(hold_id)s and released_at is null returning subject_ref, source_no

-- name: intake_release_waiting
update request r set state = 'accepted', sweep_id = null, leaf = null, data_result = null, moved_at = clock_timestamp()
where r.state = 'held' and (%(subject)s::text is null or r.subject_ref = %(subject)s)
  and not exists (
    select from hold h where h.subject_ref = r.subject_ref and h.released_at is null and (h.until is null or h.until > %(at)s))

-- name: intake_open_sweeps
select s.sweep_id, s.bucket, s.ordinals from sweep s where s.state in ('sealed', 'awaiting-approval', 'published') for update

-- name: intake_begun
select tree, first_chunk, end_chunk from work where sweep_id = %(sweep_id)s and intent_at is not null

-- name: intake_exclude
insert into excluded (sweep_id, tree, reason, cause, indices)
values (%(sweep_id)s, %(tree)s, %(reason)s, %(cause)s, %(indices)s) on conflict do nothing

-- name: intake_cancel
select r.state, r.sweep_id, r.leaf, s.bucket, s.state, r.class from request r left join sweep s using (sweep_id)
where r.request_id = %(request_id)s for update of r

-- name: intake_cancelled
update request set state = 'cancelled', moved_at = clock_timestamp() where request_id = %(request_id)s

-- name: intake_approving
select r.key_id, r.sweep_id, s.scope_digest, s.state from request r left join sweep s using (sweep_id)
where r.request_id = %(request_id)s and r.state in ('accepted', 'planned') for update of r

-- name: intake_approve
insert into approval (request_id, key_id, scope_root, at)
values (%(request_id)s, %(key_id)s, %(scope_root)s, %(at)s) on conflict do nothing

-- name: intake_approvers
select key_id from approval where request_id = %(request_id)s and scope_root = %(scope_root)s order by key_id

-- name: intake_approved
update sweep set approved_index = %(index)s, moved_at = clock_timestamp()
where sweep_id = %(sweep_id)s and approved_index is null
