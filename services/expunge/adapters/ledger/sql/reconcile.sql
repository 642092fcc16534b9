-- Stage reconcile: what came in, was erased and is there. Reads the catalogue; writes tasks.

-- name: reconcile_ask
insert into task (kind, key, input) values ('reconcile', %(key)s, %(input)s::jsonb) on conflict (kind, key) do nothing

-- Keeps registration out until the transaction ends, so that no artifact with a lower id comes later.
-- name: reconcile_lock
select pg_advisory_xact_lock(1163415637)

-- name: reconcile_sweep
select sweep_id, bucket, scope_digest, scope_index, file_digest, class, trees, ordinals from sweep
where sweep_id = %(sweep_id)s

-- name: reconcile_sources_of_blocks
select distinct source_no from ordinal_block where first_ordinal = any(%(blocks)s::bigint[]) order by 1

-- name: reconcile_sources_named
select source_no from source where %(names)s::text[] is null or name = any(%(names)s::text[]) order by 1

-- One statement, one snapshot: the log's size, the highest artifact id given so far (under the lock above nobody is about
-- to commit one), and counts by source and kind.
-- name: reconcile_start
select (select next from log_head), (select case when is_called then last_value else 0 end from artifact_id),
       (select coalesce(jsonb_agg(jsonb_build_array(x.source_no, x.kind, x.artifacts)), '[]') from (
            select source_no, kind, sum(artifacts)::bigint as artifacts from erased
            where source_no = any(%(sources)s::integer[]) group by 1, 2) as x),
       (select coalesce(jsonb_agg(jsonb_build_array(x.source_no, x.kind, x.artifacts)), '[]') from (
            select b.source_no, c.kind, sum(c.artifacts)::bigint as artifacts
            from ordinal_block b cross join lateral (
                select a.kind, count(*) as artifacts from artifact a
                where a.ordinal >= b.first_ordinal and a.ordinal < b.first_ordinal + 65536 group by 1
            ) as c
            where b.source_no = any(%(sources)s::integer[]) group by 1, 2) as x)

-- name: reconcile_erased
select source_no, kind, sum(artifacts)::bigint from erased where source_no = any(%(sources)s::integer[]) group by 1, 2

-- name: reconcile_block
select first_ordinal, source_no from ordinal_block
where source_no = any(%(sources)s::integer[]) and first_ordinal >= %(at)s order by first_ordinal limit 1

-- name: reconcile_page
select a.ordinal, a.artifact_id, a.kind, s.name, u.name, a.locator
from artifact a join store s using (store_no) join unit u using (unit_no)
where (a.ordinal, a.artifact_id) > (%(ordinal)s, %(artifact)s) and a.ordinal >= %(first)s and a.ordinal < %(first)s + 65536
  and a.artifact_id <= %(last)s
order by a.ordinal, a.artifact_id limit %(limit)s

-- Artifacts that the catalogue still has.
-- name: reconcile_still
select a.ordinal, a.artifact_id from artifact a
join unnest(%(ordinals)s::bigint[], %(ids)s::bigint[]) as t(ordinal, artifact_id) using (ordinal, artifact_id)

-- name: reconcile_open_sweeps
select ordinals from sweep where state = 'published'

-- name: reconcile_batches
select index, entry from log_entry
where predicate = 'urn:expunge:registered:v1' and index > %(after)s and index < %(size)s order by index limit %(limit)s

-- name: reconcile_names
select source_no, name from source where source_no = any(%(sources)s::integer[])

-- What came back counts where everything was certified: else what is there may be what could not be erased.
-- name: reconcile_result
insert into reconciled (key, unaccounted, came_back, at)
values (%(key)s, %(unaccounted)s, case when exists (
    select from request where sweep_id::text = %(key)s and data_result = 'complete') then %(present)s::bigint else 0 end, %(at)s)
on conflict (key) do update
set unaccounted = excluded.unaccounted, came_back = excluded.came_back, at = excluded.at where reconciled.at <= excluded.at

-- name: reconcile_done
select done_at is not null from task where kind = 'reconcile' and key = %(key)s

-- name: reconcile_said
select index, entry from log_entry where predicate = 'urn:expunge:reconciliation:v1' and index >= %(first)s order by index
