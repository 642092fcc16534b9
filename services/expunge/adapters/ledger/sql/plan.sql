-- Stage plan: claim accepted requests, resolve their artifacts in physical order, packed.

-- Intake takes it alone to place a hold: the hold comes before what is sealed, or finds it sealed.
-- name: plan_lock
select pg_advisory_xact_lock_shared(1163415639)

-- name: plan_claim_people
select request_id, subject_ref, purposes, body_digest, bucket from request
where class = 'people' and state = 'accepted' order by seq limit %(limit)s for update skip locked

-- name: plan_claim_order
select request_id, subject_ref, purposes, body_digest, bucket, body, type from request
where class = 'order' and state = 'accepted' order by seq limit 1 for update skip locked

-- As far as it matters: more than a sweep holds need not be counted, however many wait.
-- name: plan_waiting
select class, count(*), min(accepted_at) from (
    (select class, accepted_at from request where state = 'accepted' and class = 'people' order by seq limit %(limit)s)
    union all
    (select class, accepted_at from request where state = 'accepted' and class = 'order' order by seq limit 1)
) as oldest group by class

-- People's sweeps under way: sealed and not published yet, or with work left (which waits from sealing on), and moving.
-- How many, and when the newest was sealed.
-- name: plan_people_under_way
select count(*), max(sealed_at) from (
    select sealed_at from work join sweep using (sweep_id)
    where work.step <> 'done' and sweep.class = 'people' and sweep.state in ('sealed', 'published')
    group by sweep_id, sealed_at
    having max(work.ordered_at) > clock_timestamp() - make_interval(secs => %(stuck)s::float8)
) as moving

-- name: plan_becomes_order
update request set class = 'order' where request_id = any(%(ids)s::uuid[])

-- name: plan_images
select string_agg(int4send((w.i - 1)::integer), ''::bytea order by w.i, x.ordinal),
       string_agg(int8send(x.ordinal), ''::bytea order by w.i, x.ordinal)
from unnest(%(subjects)s::text[]) with ordinality as w(subject_ref, i) join image_subject x using (subject_ref)

-- name: plan_source_ranges
select b.first_ordinal, b.first_ordinal + b.used from ordinal_block b join source s using (source_no)
where s.name = %(source)s and b.used > 0 order by 1

-- Sorted by who asks, as are those of a period: a sort in the database would take longer than the rest. (Ranges, here and
-- below, are read one by one by the index: certify.sql says why.)
-- name: plan_ordinals_in_ranges
select string_agg(int8send(i.ordinal), ''::bytea)
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi),
     lateral (select i.ordinal from image i where i.ordinal >= r.lo and i.ordinal < r.hi offset 0) as i

-- name: plan_ordinals_of_period
select string_agg(int8send(i.ordinal), ''::bytea)
from image i join source s using (source_no)
where i.acquired_on >= %(start)s and i.acquired_on < %(end)s and (%(source)s::text is null or s.name = %(source)s)

-- name: plan_ordinals_of_subjects
select string_agg(int8send(ordinal), ''::bytea order by ordinal)
from (select distinct ordinal from image_subject where subject_ref = any(%(subjects)s::text[])) as x

-- Columns of artifacts, packed; locators laid end to end, with their lengths in bytes.
-- name: plan_artifacts
with chosen as (
    select a.*, row_number() over (partition by kind, store_no order by unit_no, locator, artifact_id) - 1 as rn
    from artifact a where a.ordinal = any(%(ordinals)s::bigint[])
)
select kind, store_no,
       string_agg(int8send(artifact_id), ''::bytea order by rn), string_agg(int8send(ordinal), ''::bytea order by rn),
       string_agg(int4send(unit_no), ''::bytea order by rn), string_agg(int8send(purposes), ''::bytea order by rn),
       string_agg(digest, ''::bytea order by rn), string_agg(int4send(octet_length(locator)), ''::bytea order by rn),
       convert_to(string_agg(locator, '' order by rn), 'UTF8')
from chosen group by kind, store_no, rn / %(page)s::bigint order by 1, 2, rn / %(page)s::bigint

-- Which units an order's artifacts are in, and of which images (domain.extents).
-- name: plan_extents
select kind, store_no, unit_no, count(*), min(ordinal), max(ordinal)
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi), lateral (
    select a.kind, a.store_no, a.unit_no, a.ordinal from artifact a where a.ordinal >= r.lo and a.ordinal < r.hi offset 0
) as a
group by 1, 2, 3 order by 1, 2, 3

-- An order's artifacts, some units and images at a time: packed as they lie, and sorted by who asks. All columns of a row
-- are added at once, so they agree about the order whatever it is.
-- name: plan_page
select %(kind)s::text, %(store_no)s::smallint,
       string_agg(int8send(artifact_id), ''::bytea), string_agg(int8send(ordinal), ''::bytea),
       string_agg(int4send(unit_no), ''::bytea), string_agg(int8send(purposes), ''::bytea) filter (where %(purposes)s),
       string_agg(digest, ''::bytea), string_agg(int4send(octet_length(locator)), ''::bytea),
       convert_to(string_agg(locator, ''), 'UTF8')
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi), lateral (
    select a.artifact_id, a.ordinal, a.unit_no, a.purposes, a.digest, a.locator from artifact a
    where a.ordinal >= r.lo and a.ordinal < r.hi and a.kind = %(kind)s and a.store_no = %(store_no)s
      and a.unit_no between %(first_unit)s and %(last_unit)s offset 0
) as a

-- name: plan_image_digests
select string_agg(digest, ''::bytea) from image where ordinal = any(%(ordinals)s::bigint[])

-- name: plan_image_digest_ranges
select string_agg(i.digest, ''::bytea)
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi),
     lateral (select i.digest from image i where i.ordinal >= r.lo and i.ordinal < r.hi offset 0) as i

-- name: plan_stores
select store_no, name from store

-- name: plan_units
select unit_no, name from unit where unit_no = any(%(units)s::integer[])

-- name: plan_purposes
select bit, name from purpose

-- name: plan_held
select string_agg(int8send(x.ordinal), ''::bytea)
from hold h join image_subject x using (subject_ref)
where h.released_at is null and (h.until is null or h.until > %(at)s)

-- name: plan_held_ranges
select b.first_ordinal, b.first_ordinal + b.used
from hold h join ordinal_block b using (source_no)
where h.released_at is null and (h.until is null or h.until > %(at)s)

-- Sweeps under way, and those that ended without some artifact.
-- name: plan_overlapping
select sweep_id, bucket, ordinals from sweep
where state in ('sealed', 'awaiting-approval', 'published')
union all
select s.sweep_id, s.bucket, s.ordinals from residue join sweep s using (sweep_id) where s.state = 'done'

-- name: plan_put_overlaps
insert into overlap (sweep_id, other_id) select %(sweep_id)s, other_id from unnest(%(others)s::uuid[]) as o(other_id)

-- name: plan_tombstones
select t.bitmap from tombstone t join source s using (source_no)
where (%(source)s::text is null or s.name = %(source)s)

-- name: plan_catalogue_index
select coalesce(max(log_index), -1) from registration_batch

-- name: plan_retain
update artifact a set purposes = t.remaining
from unnest(%(ordinals)s::bigint[], %(ids)s::bigint[], %(remaining)s::bigint[]) as t(ordinal, artifact_id, remaining)
where a.ordinal = t.ordinal and a.artifact_id = t.artifact_id

-- name: plan_suppress_page
insert into suppressed_page (macs) values (%(macs)s)

-- name: plan_put_sweep
insert into sweep (sweep_id, class, state, bucket, requests, images, leaves, trees, scope_digest, scope_envelope, scope_index,
                   file_digest, ordinals, last_artifact, sealed_at, expires_at, trace)
values (%(sweep_id)s, %(class)s, 'sealed', %(bucket)s, %(requests)s, %(images)s, %(leaves)s, %(trees)s, %(scope_digest)s,
        %(scope_envelope)s, %(scope_index)s, %(file_digest)s, %(ordinals)s, %(last_artifact)s, %(at)s, %(expires_at)s,
        (select trace from request where request_id = %(first)s))

-- name: plan_put_work
insert into work (sweep_id, tree, first_chunk, end_chunk, step)
select %(sweep_id)s, t.tree, t.first, t.stop, 'waiting'
from unnest(%(trees)s::smallint[], %(first)s::integer[], %(end)s::integer[]) as t(tree, first, stop)

-- name: plan_put_excluded
insert into excluded (sweep_id, tree, reason, cause, indices)
values (%(sweep_id)s, %(tree)s, 'held', %(cause)s, %(indices)s)

-- name: plan_planned
update request r set state = 'planned', sweep_id = %(sweep_id)s, leaf = t.leaf, images = t.images, artifacts = t.artifacts,
    moved_at = clock_timestamp()
from unnest(%(ids)s::uuid[], %(leaves)s::integer[], %(images)s::bigint[], %(artifacts)s::bigint[]) as t(request_id, leaf, images, artifacts)
where r.request_id = t.request_id
