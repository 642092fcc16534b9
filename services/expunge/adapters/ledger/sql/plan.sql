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
-- name: plan_people_under_way
select count(*) from (
    select from work join sweep using (sweep_id)
    where work.step <> 'done' and sweep.class = 'people' and sweep.state in ('sealed', 'published') group by sweep_id
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

-- name: plan_ordinals_in_ranges
select string_agg(int8send(i.ordinal), ''::bytea order by i.ordinal)
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi) join image i on i.ordinal >= r.lo and i.ordinal < r.hi

-- name: plan_ordinals_of_period
select string_agg(int8send(i.ordinal), ''::bytea order by i.ordinal)
from image i join source s using (source_no)
where i.acquired_on >= %(start)s and i.acquired_on < %(end)s and (%(source)s::text is null or s.name = %(source)s)

-- name: plan_ordinals_of_subjects
select string_agg(int8send(ordinal), ''::bytea order by ordinal)
from (select distinct ordinal from image_subject where subject_ref = any(%(subjects)s::text[])) as x

-- name: plan_artifacts
with chosen as (
    select a.*, (row_number() over (partition by kind, store_no order by unit_no, locator, artifact_id) - 1) as rn
    from artifact a where a.ordinal = any(%(ordinals)s::bigint[])
)
select kind, store_no, rn / %(page)s::bigint as page,
       string_agg(int8send(artifact_id), ''::bytea order by rn), string_agg(int8send(ordinal), ''::bytea order by rn),
       string_agg(int4send(unit_no), ''::bytea order by rn), string_agg(int8send(purposes), ''::bytea order by rn),
       string_agg(digest, ''::bytea order by rn), array_agg(locator order by rn)
from chosen group by kind, store_no, rn / %(page)s::bigint order by 1, 2, 3

-- An order's artifacts are sorted and packed once, tree by tree, then read page by page, so that memory stays flat.
-- name: plan_sort_in_memory
set local work_mem = '256MB'

-- name: plan_pages_create
create temporary table plan_page (
    kind text, store_no smallint, page bigint, ids bytea storage external, ordinals bytea storage external,
    units bytea storage external, purposes bytea storage external, digests bytea storage external,
    locators text[] storage external
) on commit drop

-- name: plan_places
select distinct kind, store_no
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi) join artifact a on a.ordinal >= r.lo and a.ordinal < r.hi
order by 1, 2

-- name: plan_pages_fill
insert into plan_page
with chosen as (
    select a.*, row_number() over (order by unit_no, locator, artifact_id) - 1 as rn
    from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi) join artifact a on a.ordinal >= r.lo and a.ordinal < r.hi
    where a.kind = %(kind)s and a.store_no = %(store_no)s
)
select %(kind)s, %(store_no)s, rn / %(page)s::bigint,
       string_agg(int8send(artifact_id), ''::bytea order by rn), string_agg(int8send(ordinal), ''::bytea order by rn),
       string_agg(int4send(unit_no), ''::bytea order by rn), string_agg(int8send(purposes), ''::bytea order by rn),
       string_agg(digest, ''::bytea order by rn), array_agg(locator order by rn)
from chosen group by rn / %(page)s::bigint

-- name: plan_pages
select kind, store_no, page from plan_page order by 1, 2, 3

-- name: plan_page
select kind, store_no, page, ids, ordinals, units, purposes, digests, locators from plan_page
where kind = %(kind)s and store_no = %(store_no)s and page = %(page)s

-- name: plan_image_digests
select string_agg(digest, ''::bytea) from image where ordinal = any(%(ordinals)s::bigint[])

-- name: plan_image_digest_ranges
select string_agg(i.digest, ''::bytea)
from unnest(%(first)s::bigint[], %(end)s::bigint[]) as r(lo, hi) join image i on i.ordinal >= r.lo and i.ordinal < r.hi

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

-- name: plan_overlapping
select sweep_id, bucket, ordinals from sweep where state in ('sealed', 'awaiting-approval', 'published')

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
