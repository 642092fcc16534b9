-- Stage register: what comes in is staged in temporary tables, then settled set-wise. Events and bulk files take this path.

-- name: register_lock
select pg_advisory_xact_lock_shared(1163415637)

-- name: register_suppressed_pages
select page_no, macs from suppressed_page where page_no > %(after)s order by page_no

-- name: register_any_suppressed
select exists (select from suppressed_subject where lifted_at is null)

-- name: register_suppressed_subjects
select mac from suppressed_subject where mac = any(%(macs)s::bytea[]) and lifted_at is null

-- name: register_purposes
select name, bit from purpose

-- name: register_purposes_lock
lock table purpose in share row exclusive mode

-- name: register_purposes_add
insert into purpose (bit, name)
select (select coalesce(max(bit), -1) from purpose) + t.n, t.name
from unnest(%(names)s::text[]) with ordinality as t(name, n) on conflict (name) do nothing

-- name: register_sources
insert into source (name, provenance)
select * from unnest(%(names)s::text[], %(provenance)s::jsonb[])
on conflict (name) do nothing returning name

-- name: register_sources_known
select name, provenance from source where name = any(%(names)s::text[])

-- name: register_stage_images
create temporary table if not exists staged_image (
    image integer not null, batch integer not null, line bigint not null, adds boolean not null,
    source text collate "C" not null, key text collate "C" not null, subjects text[] collate "C" not null, digest bytea, acquired_on date,
    refused text
) on commit delete rows

-- name: register_stage_artifacts
create temporary table if not exists staged_artifact (
    image integer not null, kind text collate "C" not null, store text not null, unit text not null,
    locator text collate "C" not null, purposes bigint not null, digest bytea not null
) on commit delete rows

-- `target`: the first image of this load with the same source and key. `known`: it was in the catalogue before.
-- name: register_stage_settled
create temporary table if not exists settled_image (
    image integer not null, batch integer not null, line bigint not null, adds boolean not null, target integer not null,
    known boolean not null, ordinal bigint, source_no integer, key text collate "C" not null, subjects text[] collate "C" not null,
    digest bytea, acquired_on date, refusal text
) on commit delete rows

-- name: register_stage_leaves
create temporary table if not exists settled_artifact (
    artifact_id bigint not null, batch integer not null, source_no integer not null, kind text not null, digest bytea not null,
    leads boolean not null
) on commit delete rows

-- name: register_analyze_images
analyze staged_image

-- name: register_analyze_artifacts
analyze staged_artifact

-- name: register_analyze_settled
analyze settled_image

-- The people and the digest of images that artifacts are added to: they decide as if the image came anew.
-- name: register_owners
select o.name, i.key, i.digest, coalesce(array_agg(x.subject_ref) filter (where x.subject_ref is not null), '{}')
from unnest(%(sources)s::text[], %(keys)s::text[]) as t(source, key)
join source o on o.name = t.source join image i on i.source_no = o.source_no and i.key = t.key
left join image_subject x using (ordinal) group by 1, 2, 3

-- name: register_settle
insert into settled_image (image, batch, line, adds, target, known, ordinal, source_no, key, subjects, digest, acquired_on, refusal)
with placed as (
    select s.*, o.source_no,
           case when s.refused is not null then s.refused when o.source_no is null then 'unknown-source'
                when o.closed_by is not null then 'source-closed' end as refusal
    from staged_image s left join source o on o.name = s.source
), grouped as (
    select p.*, first_value(image) over w as target, first_value(adds) over w as only_adds,
           first_value(digest) over w as first_digest, first_value(acquired_on) over w as first_day,
           first_value(subjects) over w as first_subjects
    from placed p window w as (partition by source_no, key, refusal is null order by adds, image)
)
select g.image, g.batch, g.line, g.adds, g.target, i.ordinal is not null, i.ordinal, g.source_no, g.key, g.subjects, g.digest,
       g.acquired_on,
       case when g.refusal is not null then g.refusal
            when g.adds then case when i.ordinal is null and g.only_adds then 'unknown-image' end
            when g.digest <> g.first_digest or g.acquired_on <> g.first_day or g.subjects <> g.first_subjects then 'duplicate-image'
            when i.ordinal is not null and (g.digest <> i.digest or g.acquired_on <> i.acquired_on or g.subjects <> coalesce(
                (select array_agg(x.subject_ref order by x.subject_ref) from image_subject x where x.ordinal = i.ordinal), '{}'))
            then 'duplicate-image' end
from grouped g left join image i on g.refusal is null and i.source_no = g.source_no and i.key = g.key

-- An image that is known is the same only if it brings no artifact, and no purpose of one, that is not.
-- name: register_conflicts
update settled_image s set refusal = 'duplicate-image'
where s.known and not s.adds and s.refusal is null and exists (
    select from staged_artifact a left join store t on t.name = a.store left join unit u on u.store_no = t.store_no and u.name = a.unit
    where a.image = s.image and not exists (
        select from artifact x where x.ordinal = s.ordinal and x.kind = a.kind and x.store_no = t.store_no and x.unit_no = u.unit_no
          and x.locator = a.locator and a.purposes & ~x.purposes = 0))

-- name: register_conflicting_artifacts
update settled_image s set refusal = 'duplicate-artifact'
where s.known and s.adds and s.refusal is null and exists (
    select from staged_artifact a join store t on t.name = a.store join unit u on u.store_no = t.store_no and u.name = a.unit
    join artifact x on x.ordinal = s.ordinal and x.kind = a.kind and x.store_no = t.store_no and x.unit_no = u.unit_no
      and x.locator = a.locator
    where a.image = s.image and a.purposes & ~x.purposes <> 0)

-- name: register_needed
select source_no, count(*) from settled_image
where image = target and not adds and not known and refusal is null group by 1 order by 1

-- name: register_lock_sources
select source_no from source where source_no = any(%(sources)s::integer[]) order by 1 for no key update

-- name: register_blocks
select source_no, first_ordinal, used from ordinal_block
where source_no = any(%(sources)s::integer[]) and used < 65536 order by 1, 2

-- name: register_new_blocks
select nextval('ordinal_block_no') * 65536 from generate_series(1, %(count)s::integer)

-- name: register_use_blocks
insert into ordinal_block (first_ordinal, source_no, used)
select * from unnest(%(firsts)s::bigint[], %(sources)s::integer[], %(used)s::integer[])
on conflict (first_ordinal) do update set used = excluded.used

-- name: register_number
update settled_image s set ordinal = r.first + k.n
from (
    select image, source_no, row_number() over (partition by source_no order by image) - 1 as rank
    from settled_image where image = target and not adds and not known and refusal is null
) f,
unnest(%(sources)s::integer[], %(ranks)s::bigint[], %(firsts)s::bigint[], %(counts)s::bigint[]) as r(source_no, rank, first, count)
cross join lateral generate_series(0, r.count - 1) as k(n)
where s.image = f.image and r.source_no = f.source_no and f.rank = r.rank + k.n

-- name: register_number_rest
update settled_image s set ordinal = t.ordinal
from settled_image t where s.ordinal is null and s.refusal is null and t.image = s.target

-- name: register_images
insert into image (ordinal, source_no, key, digest, acquired_on)
select ordinal, source_no, key, digest, acquired_on from settled_image
where image = target and not adds and not known and refusal is null order by ordinal

-- name: register_subjects
insert into image_subject (subject_ref, ordinal)
select unnest(subjects), ordinal from settled_image where image = target and not adds and not known and refusal is null

-- Identity columns burn a number per conflict, so what is there is left out first.
-- name: register_stores
insert into store (name)
select distinct a.store from staged_artifact a join settled_image s using (image)
where s.refusal is null and not exists (select from store t where t.name = a.store) on conflict do nothing

-- Numbered as their images are: what came in unit by unit is read back so, each row once and without a sort.
-- name: register_units
insert into unit (store_no, name)
select t.store_no, a.unit from staged_artifact a join settled_image s using (image) join store t on t.name = a.store
where s.refusal is null and not exists (select from unit u where u.store_no = t.store_no and u.name = a.unit)
group by 1, 2 order by min(s.ordinal), 1, 2 on conflict do nothing

-- name: register_artifacts
with offered as (
    select s.ordinal, a.kind, t.store_no, u.unit_no, a.locator, bit_or(a.purposes) as purposes, (array_agg(a.digest))[1] as digest,
           min(s.batch) as batch, min(s.source_no) as source_no, bool_or(s.known) as known
    from settled_image s join staged_artifact a using (image) join store t on t.name = a.store
    join unit u on u.store_no = t.store_no and u.name = a.unit
    where s.refusal is null and (s.adds or not s.known)
    group by 1, 2, 3, 4, 5
), fresh as (
    select o.*, nextval('artifact_id') as artifact_id from (
        select * from offered o
        where not o.known or not exists (
            select from artifact x where x.ordinal = o.ordinal and x.kind = o.kind and x.store_no = o.store_no
              and x.unit_no = o.unit_no and x.locator = o.locator)
        order by ordinal, kind) o
), put as (
    insert into artifact (ordinal, artifact_id, kind, store_no, unit_no, locator, purposes, digest)
    select ordinal, artifact_id, kind, store_no, unit_no, locator, purposes, digest from fresh
)
insert into settled_artifact (artifact_id, batch, source_no, kind, digest, leads)
select artifact_id, batch, source_no, kind, digest, not known and row_number() over (partition by ordinal order by artifact_id) = 1
from fresh

-- name: register_leaves
select count(*), max(artifact_id), string_agg(substring(int8send(artifact_id) from 3), ''::bytea order by artifact_id),
       string_agg(digest, ''::bytea order by artifact_id)
from (select artifact_id, digest from settled_artifact where artifact_id > %(after)s order by artifact_id limit %(limit)s) as x

-- name: register_counts
select o.name, a.kind, count(*), count(*) filter (where a.leads)
from settled_artifact a join source o using (source_no)
where a.artifact_id > %(after)s and a.artifact_id <= %(last)s group by 1, 2 order by 1, 2

-- name: register_taken
select batch, count(*) filter (where leads), count(*) from settled_artifact group by 1

-- name: register_refused
select batch, refusal, count(*) from settled_image where refusal is not null group by 1, 2 order by 1, 2

-- name: register_refused_lines
select line, refusal from settled_image where refusal is not null order by 1 limit %(limit)s

-- name: register_batches_known
select batch_id from registration_batch where batch_id = any(%(ids)s::uuid[])

-- name: register_batches
insert into registration_batch (batch_id, source_no, images, artifacts, refused, log_index, at)
select t.batch_id, null, t.images, t.artifacts, t.refused, t.log_index, %(at)s
from unnest(%(ids)s::uuid[], %(images)s::bigint[], %(artifacts)s::bigint[], %(refused)s::bigint[], %(indices)s::bigint[])
    as t(batch_id, images, artifacts, refused, log_index)

-- name: register_members
select string_agg(int8send(i.ordinal), ''::bytea), count(i.ordinal)
from unnest(%(sources)s::text[], %(keys)s::text[]) as t(source, key)
join source o on o.name = t.source join image i on i.source_no = o.source_no and i.key = t.key

-- name: register_present
select coalesce(sum(n), 0)::bigint from unnest(%(firsts)s::bigint[], %(ends)s::bigint[]) as r(lo, hi)
cross join lateral (select count(*) as n from image i where i.ordinal >= r.lo and i.ordinal < r.hi) c

-- name: register_tombstones
select bitmap from tombstone

-- name: register_exclusions
select bitmap from exclusion where purpose_bit = %(purpose)s

-- name: register_snapshot
insert into snapshot (name, purpose_bit, root, images, bitmap, grade, at)
values (%(name)s, %(purpose)s, %(root)s, %(images)s, %(bitmap)s, %(grade)s, %(at)s) on conflict (name) do nothing

-- name: register_snapshot_known
select purpose_bit, root, grade from snapshot where name = %(name)s

-- name: register_model
insert into model (name, purpose_bit, status, weights_digest, weights_store, weights_unit, weights_locator, metrics, manifest, at)
values (%(name)s, %(purpose)s, 'unknown', %(weights)s, %(store)s, %(unit)s, %(locator)s, %(metrics)s, %(manifest)s, %(at)s)
on conflict (name) do nothing

-- name: register_model_known
select manifest from model where name = %(name)s

-- Models that are unknown because something they name was not here yet; linked again whenever snapshots or models come.
-- name: register_unlinked
select m.name from model m
where exists (select from jsonb_array_elements_text(m.manifest -> 'trained_on') as t(name) join snapshot s on s.name = t.name
              where not exists (select from model_snapshot x where x.model_no = m.model_no and x.snapshot_no = s.snapshot_no))
   or exists (select from jsonb_array_elements(coalesce(m.manifest -> 'parents', '[]')) as t(parent)
              join model p on p.name = t.parent ->> 'model'
              where not exists (select from model_edge e where e.child_no = m.model_no and e.parent_no = p.model_no
                                and e.relation = t.parent ->> 'relation'))
order by m.model_no

-- name: register_link_snapshots
insert into model_snapshot (model_no, snapshot_no)
select m.model_no, s.snapshot_no from model m
cross join lateral jsonb_array_elements_text(m.manifest -> 'trained_on') as t(name) join snapshot s on s.name = t.name
where m.name = %(name)s on conflict do nothing

-- An edge that would close a cycle is left out: the model stays unknown.
-- name: register_link_parents
insert into model_edge (child_no, parent_no, relation)
select m.model_no, p.model_no, t.parent ->> 'relation' from model m
cross join lateral jsonb_array_elements(coalesce(m.manifest -> 'parents', '[]')) as t(parent) join model p on p.name = t.parent ->> 'model'
where m.name = %(name)s and m.model_no not in (
    with recursive above(no) as (
        select p.model_no union select e.parent_no from above join model_edge e on e.child_no = above.no
    ) select no from above)
on conflict do nothing

-- name: register_manifests
select manifest from model where name = any(%(names)s::text[]) order by model_no
