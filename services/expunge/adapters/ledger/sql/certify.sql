-- Stage certify: which requests are done, their certificates, and the rows that go last.

-- name: certify_sweeps
select s.sweep_id, s.class, s.last_artifact, s.bucket, s.requests, s.trees, s.scope_digest, s.rounds, s.taint,
       not exists (select from work w where w.sweep_id = s.sweep_id and w.step <> 'done'),
       (select count(*) from work w where w.sweep_id = s.sweep_id and w.step = 'done'),
       array(select other_id from overlapping o where o.sweep_id = s.sweep_id)
from sweep s where s.sweep_id = any(%(ids)s::uuid[]) and s.state in ('published', 'done') order by s.sweep_id for update

-- The same of one, without holding it.
-- name: certify_sweep_seen
select s.sweep_id, s.class, s.last_artifact, s.bucket, s.requests, s.trees, s.scope_digest, s.rounds, s.taint,
       not exists (select from work w where w.sweep_id = s.sweep_id and w.step <> 'done'),
       (select count(*) from work w where w.sweep_id = s.sweep_id and w.step = 'done'),
       array(select other_id from overlapping o where o.sweep_id = s.sweep_id)
from sweep s where s.sweep_id = %(id)s and s.state in ('published', 'done')

-- Orders are certified by tasks. One that is under way looks again itself before it ends.
-- name: certify_defer
insert into task (kind, key, input)
select %(kind)s, sweep_id::text, jsonb_build_object('sweep', sweep_id)
from unnest(%(sweeps)s::uuid[]) as o(sweep_id) order by 2
on conflict (kind, key) do update set done_at = null, attempts = 0, not_before = clock_timestamp()
where task.done_at is not null

-- Outcomes count once their statement is in the log: rescan's row comes before dispatch has seen its event. What is erased
-- anew counts too: it has to be looked for anew.
-- name: certify_outcomes
select tree, chunk, step, attempt, outcomes, log_index from outcome
where sweep_id = %(sweep_id)s and (step = 'absence' or (step = 'erase' and attempt > 0)) and log_index is not null
order by log_index

-- Whether what was read there has changed since. First attempts are of leaves that had no outcome, and cannot.
-- name: certify_newer
select exists (select from outcome
               where sweep_id = %(sweep_id)s and step in ('erase', 'absence') and attempt > 0 and log_index > %(newest)s)

-- What other sweeps hold of the same artifacts is read from their scope files.
-- name: certify_others
select sweep_id, bucket, trees from sweep where sweep_id = any(%(ids)s::uuid[]) order by sweep_id

-- name: certify_residue
insert into residue (sweep_id) values (%(sweep_id)s) on conflict do nothing

-- name: certify_open
select leaf, request_id, bucket, state, data_result, models_result, type, due from request
where sweep_id = %(sweep_id)s and state in ('planned', 'data-certified') order by leaf

-- name: certify_taints
select t.requests, m.name, t.remedy, t.due, t.resolution, t.resolved_index from taint t join model m using (model_no)
where t.sweep_id = %(sweep_id)s order by m.name

-- name: certify_put_round
insert into round (sweep_id, round, provision, requests, envelope, log_index, file_digest, at)
values (%(sweep_id)s, %(round)s, %(provision)s, %(requests)s, %(envelope)s, %(index)s, %(file_digest)s, %(at)s)

-- name: certify_count_rounds
update sweep set rounds = rounds + 1, moved_at = clock_timestamp() where sweep_id = %(sweep_id)s

-- name: certify_put_certificates
insert into certificate (request_id, provision, sweep_id, round, result, digest, position, length)
select t.request_id, %(provision)s, %(sweep_id)s, %(round)s, t.result, t.digest, t.position, t.length
from unnest(%(ids)s::uuid[], %(results)s::text[], %(digests)s::bytea[], %(positions)s::bigint[], %(lengths)s::integer[])
     as t(request_id, result, digest, position, length)

-- name: certify_data
update request r set data_result = t.result, data_round = %(round)s, state = t.state,
    models_result = case when t.state = 'completed' then 'complete' else r.models_result end,
    subject_ref = case when t.result = 'complete' then null else r.subject_ref end,
    -- Reports say what an order demanded, and of how many people: who they are goes.
    body = case when t.result <> 'complete' then r.body
                when r.type <> 'expunge.request.order.v1' then ''::bytea
                when convert_from(r.body, 'UTF8')::jsonb #> '{selection,subjects}' is null then r.body
                else convert_to(jsonb_set(convert_from(r.body, 'UTF8')::jsonb, '{selection}', jsonb_build_object(
                         'by', 'list', 'people',
                         jsonb_array_length(convert_from(r.body, 'UTF8')::jsonb #> '{selection,subjects}')))::text, 'UTF8')
           end,
    moved_at = clock_timestamp()
from unnest(%(ids)s::uuid[], %(results)s::text[], %(states)s::text[]) as t(request_id, result, state)
where r.request_id = t.request_id

-- name: certify_models
update request r set models_result = t.result, models_round = %(round)s, state = t.state, moved_at = clock_timestamp()
from unnest(%(ids)s::uuid[], %(results)s::text[], %(states)s::text[]) as t(request_id, result, state)
where r.request_id = t.request_id

-- Rows of artifacts that are verified absent go, and are counted as erased, once each.
-- name: certify_drop_artifacts
with gone as (
    delete from artifact a using unnest(%(ordinals)s::bigint[], %(ids)s::bigint[]) as t(ordinal, artifact_id)
    where a.ordinal = t.ordinal and a.artifact_id = t.artifact_id
    returning a.ordinal, a.kind
)
insert into erased (sweep_id, source_no, kind, artifacts)
select %(sweep_id)s, b.source_no, g.kind, count(*)
from gone g join ordinal_block b on b.first_ordinal = g.ordinal - g.ordinal %% 65536 group by 2, 3
on conflict (sweep_id, source_no, kind) do update set artifacts = erased.artifacts + excluded.artifacts

-- An order's rows are counted first and dropped then: a statement that returned each row would cost as much again. Who
-- drops compares the numbers.
-- Ranges of ordinals, here and below: what is read of each is a query of its own (`lateral`, and `offset 0` where it would
-- be merged), so that it is read by the index. In a join, the planner takes a range for a ninth of the table, and reads all.
-- name: certify_count_artifact_ranges
select b.source_no, c.kind, sum(c.artifacts)::bigint
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi), lateral (
    select a.ordinal >> 16 as block, a.kind, count(*) as artifacts
    from artifact a where a.ordinal >= r.lo and a.ordinal < r.hi and a.artifact_id <= %(last)s group by 1, 2
) as c join ordinal_block b on b.first_ordinal = c.block << 16 group by 1, 2

-- name: certify_add_erased
insert into erased (sweep_id, source_no, kind, artifacts)
select %(sweep_id)s, t.source_no, t.kind, t.artifacts
from unnest(%(sources)s::integer[], %(kinds)s::text[], %(artifacts)s::bigint[]) as t(source_no, kind, artifacts)
on conflict (sweep_id, source_no, kind) do update set artifacts = erased.artifacts + excluded.artifacts

-- name: certify_drop_artifact_ranges
delete from artifact where ctid = any(array(
    select a.ctid from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi), lateral (
        select a.ctid from artifact a
        where a.ordinal >= r.lo and a.ordinal < r.hi and a.artifact_id <= %(last)s offset 0
    ) as a
))

-- People's images are scattered, an order's lie in a few ranges: joined to many ranges, a plan compares each row with each.
-- name: certify_drop_images
with gone as (
    delete from image i
    where i.ordinal = any(%(ordinals)s::bigint[]) and not exists (select from artifact a where a.ordinal = i.ordinal)
    returning i.ordinal, i.source_no
)
select source_no, string_agg(int8send(ordinal), ''::bytea) from gone group by source_no

-- Where no artifact up to `last` is left. What came later is in the index of artifacts: no dead row is looked at.
-- name: certify_late_images
select coalesce(array_agg(distinct a.ordinal), '{}')
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi), lateral (
    select a.ordinal from artifact a
    where a.ordinal >= r.lo and a.ordinal < r.hi and a.artifact_id > %(last)s offset 0
) as a

-- name: certify_image_blocks
select i.source_no, string_agg(int8send(i.ordinal), ''::bytea)
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi), lateral (
    select i.source_no, i.ordinal from image i
    where i.ordinal >= r.lo and i.ordinal < r.hi and i.ordinal <> all(%(late)s::bigint[]) offset 0
) as i group by 1

-- name: certify_drop_image_blocks
delete from image where ctid = any(array(
    select i.ctid from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi), lateral (
        select i.ctid from image i
        where i.ordinal >= r.lo and i.ordinal < r.hi and i.ordinal <> all(%(late)s::bigint[]) offset 0
    ) as i
))

-- name: certify_drop_subject_blocks
delete from image_subject where ctid = any(array(
    select x.ctid from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi), lateral (
        select x.ctid from image_subject x
        where x.ordinal >= r.lo and x.ordinal < r.hi and x.ordinal <> all(%(late)s::bigint[]) offset 0
    ) as x
))

-- name: certify_drop_subjects
delete from image_subject x
where x.ordinal = any(%(ordinals)s::bigint[]) and not exists (select from image i where i.ordinal = x.ordinal)

-- Consents of people who asked, and of whom nothing is left.
-- name: certify_drop_consents
delete from consent c using request r
where r.request_id = any(%(ids)s::uuid[]) and c.subject_ref = r.subject_ref
  and not exists (select from image_subject x where x.subject_ref = r.subject_ref)

-- name: certify_tombstone
insert into tombstone (sweep_id, source_no, images, bitmap)
values (%(sweep_id)s, %(source_no)s, %(images)s, %(bitmap)s)
on conflict (sweep_id, source_no) do update set images = excluded.images, bitmap = excluded.bitmap

-- name: certify_tombstone_now
select source_no, bitmap from tombstone where sweep_id = %(sweep_id)s

-- Runs may be under way for which nobody waits any more, because who did has cancelled: they end first.
-- name: certify_sweep_done
update sweep set state = 'done', moved_at = clock_timestamp()
where sweep_id = %(sweep_id)s and not exists (
    select from request where sweep_id = %(sweep_id)s and state in ('planned', 'data-certified'))
  and not exists (select from work where sweep_id = %(sweep_id)s and step <> 'done')

-- Rounds to be announced; who has them now announces them.
-- name: certify_unissued
select sweep_id, round, provision, at from round
where not issued and log_index < (select coalesce(max(size), 0) from log_checkpoint where note is not null)
order by log_index for update skip locked

-- `completes`: whether it was this round that closed the request; a round may be announced after later ones closed more.
-- name: certify_certificates
select c.request_id, c.result, c.digest,
    q.state = 'completed' and q.sweep_id = c.sweep_id and coalesce(q.models_round, q.data_round) = c.round as completes,
    q.class, q.accepted_at, q.trace
from certificate c join request q using (request_id)
where c.sweep_id = %(sweep_id)s and c.round = %(round)s order by q.leaf

-- name: certify_issued
update round r set issued = true
from unnest(%(sweeps)s::uuid[], %(rounds)s::integer[]) as t(sweep_id, round)
where (r.sweep_id, r.round) = (t.sweep_id, t.round)

-- Sweeps that stand still and may lack a look: some request is open, and not only for models that are still tainted.
-- name: certify_sweeps_to_check
update sweep u set checked_at = clock_timestamp()
where u.sweep_id in (
    select sweep_id from sweep s where state = 'published' and taint = 'resolved'
      and (moved_at < clock_timestamp() - make_interval(secs => %(age)s::float8)
           or moved_at > clock_timestamp() + make_interval(secs => %(age)s::float8))
      and (checked_at is null or checked_at < clock_timestamp() - make_interval(secs => %(age)s::float8)
           or checked_at > clock_timestamp() + make_interval(secs => %(age)s::float8))
      and (exists (select from request r
                   where r.sweep_id = s.sweep_id and r.state = 'planned' and r.data_result is null)
           or not exists (select from taint t where t.sweep_id = s.sweep_id and t.resolved_index is null))
    order by checked_at nulls first limit 64 for update skip locked)
returning u.sweep_id

-- name: certify_bucket_open
-- Requests and sweeps that still need a bucket's key. A sweep waits for the last of its requests.
select count(*) from (
    select 1 from request where bucket = %(day)s and state not in ('completed', 'rejected', 'cancelled', 'void')
    union all
    select 1 from sweep s where s.bucket = %(day)s and s.state <> 'void' and (s.state <> 'done' or exists (
        select 1 from request r
        where r.sweep_id = s.sweep_id and r.state not in ('completed', 'rejected', 'cancelled', 'void')))
) as needed

-- name: certify_buckets
select bucket from request where bucket < %(before)s union select bucket from sweep where bucket < %(before)s order by 1

-- name: certify_destroyed
select index, entry from log_entry where predicate = 'urn:expunge:key-destroyed:v1' order by index

-- Dates that were missed and not yet said so, one row per sweep and provision.
-- name: certify_overdue
select r.sweep_id, 'data', min(r.due), s.scope_digest from request r join sweep s using (sweep_id)
where r.due < %(at)s and r.data_result is null and r.state = 'planned' and r.overdue_index is null
  and s.state in ('sealed', 'awaiting-approval', 'published')
group by r.sweep_id, s.scope_digest
union all
select t.sweep_id, 'models', min(t.due), s.scope_digest from taint t join sweep s using (sweep_id)
where t.due < %(at)s and t.resolved_index is null and t.overdue_index is null
group by t.sweep_id, s.scope_digest

-- name: certify_overdue_data
update request set overdue_index = %(index)s
where sweep_id = %(sweep_id)s and due < %(at)s and data_result is null and overdue_index is null

-- name: certify_overdue_models
update taint set overdue_index = %(index)s
where sweep_id = %(sweep_id)s and due < %(at)s and resolved_index is null and overdue_index is null

-- What came in, was erased and is there is counted again after an order (stage reconcile).
-- name: certify_reconcile
insert into task (kind, key, input)
values ('reconcile', 'order:' || %(sweep_id)s::uuid, jsonb_build_object('sweep', %(sweep_id)s::uuid))
on conflict (kind, key) do nothing
