-- What came back with a backup though the suppression journal says it must not: see ops/BACKUP.md.

-- name: restored_blocks
select first_ordinal, first_ordinal + used from ordinal_block where used > 0 order by 1

-- Digests of photos as they came in and of their stored files, which may differ.
-- name: restored_digests
select string_agg(int8send(x.ordinal), ''::bytea order by x.ordinal, x.digest),
       string_agg(x.digest, ''::bytea order by x.ordinal, x.digest)
from (select ordinal, digest from image where ordinal >= %(first)s and ordinal < %(end)s
      union select ordinal, digest from artifact
            where ordinal >= %(first)s and ordinal < %(end)s and kind = 'image' and digest <> %(none)s) as x

-- Sweeps that this database knows and that did not erase all they fixed: under way, never carried out, held or cancelled.
-- name: restored_known
select ordinals from sweep s where s.state <> 'done' or exists (
    select from request r where r.sweep_id = s.sweep_id and r.state in ('accepted', 'held', 'planned', 'cancelled', 'void'))

-- People of whom no request is open here.
-- name: restored_subjects
select p.subject_ref, coalesce(bool_or(r.state in ('accepted', 'held', 'planned')), false)
from (select distinct subject_ref from image_subject where subject_ref > %(after)s order by 1 limit %(limit)s) as p
     left join request r using (subject_ref)
group by 1 order by 1

-- Of these people and purposes (a mask each), those of whom something is still kept for it.
-- name: restored_kept
select t.subject_ref, t.mask from unnest(%(subjects)s::text[], %(masks)s::bigint[]) as t(subject_ref, mask)
where exists (select from image_subject p join artifact a using (ordinal)
              where p.subject_ref = t.subject_ref and a.purposes & t.mask <> 0)

-- name: restored_projection
select (select count(*) from suppressed_subject where lifted_at is null), (select coalesce(sum(octet_length(macs)), 0) from suppressed_page)

-- name: restored_lift
update suppressed_subject set lifted_at = clock_timestamp() where mac = any(%(macs)s::bytea[]) and lifted_at is null

-- name: restored_add
insert into suppressed_subject (mac) select unnest(%(macs)s::bytea[])
on conflict (mac) do update set lifted_at = null where suppressed_subject.lifted_at is not null

-- name: restored_pages
select macs from suppressed_page order by page_no

-- name: restored_page
insert into suppressed_page (macs) values (%(macs)s)

-- name: restored_open_sweeps
select sweep_id, bucket, file_digest from sweep where state not in ('done', 'void') order by scope_index

-- name: restored_offsets
select worker, topic, partition, next_offset from consumer_offset order by 1, 2, 3
