-- The blast-radius breaker: what was let through in the last hour, and what is open.

-- name: breaker_lock
select pg_advisory_xact_lock(1163415641)

-- Blocks of ordinals: their source, and how many images it has.
-- name: breaker_sources
select b.first_ordinal / 65536, s.name, (select sum(o.used) from ordinal_block o where o.source_no = b.source_no)::bigint
from ordinal_block b join source s using (source_no) where b.first_ordinal / 65536 = any(%(blocks)s::bigint[])

-- Spent since an hour ago, and since it was last closed.
-- name: breaker_state
select n.scope, b.opened_at is not null and b.closed_at is null, coalesce(b.closed_size, 0),
       coalesce((select sum(x.artifacts) from breaker_spent x where x.scope = n.scope
                   and x.at > greatest(%(at)s::timestamptz - interval '1 hour', coalesce(b.closed_at, '-infinity'))), 0)::bigint
from unnest(%(scopes)s::text[]) as n(scope) left join breaker b using (scope)

-- name: breaker_spend
insert into breaker_spent (scope, at, artifacts) select t.scope, %(at)s, t.artifacts
from unnest(%(scopes)s::text[], %(artifacts)s::bigint[]) as t(scope, artifacts)

-- name: breaker_forget
delete from breaker_spent where at < %(at)s::timestamptz - interval '2 hours'

-- name: breaker_open
insert into breaker (scope, counted, cap, opened_at)
select t.scope, t.counted, t.cap, %(at)s
from unnest(%(scopes)s::text[], %(counted)s::bigint[], %(caps)s::bigint[]) as t(scope, counted, cap)
on conflict (scope) do update set counted = excluded.counted, cap = excluded.cap, opened_at = excluded.opened_at,
    closed_at = null, closed_size = null, closing = null
where breaker.closed_at is not null

-- Whether some scope was closed again while sweeps wait.
-- name: breaker_released
select exists (select from breaker where closed_at is not null)
   and exists (select from sweep where class = 'people' and state = 'sealed')

-- name: breaker_list
select scope, counted, cap, opened_at, closed_at,
    coalesce((select sum(x.artifacts) from breaker_spent x where x.scope = b.scope
                and x.at > greatest(clock_timestamp() - interval '1 hour', coalesce(b.closed_at, '-infinity'))), 0)::bigint
from breaker b order by scope

-- name: breaker_waiting
select count(*), coalesce(sum(requests), 0)::bigint, coalesce(sum(images), 0)::bigint from sweep
where class = 'people' and state = 'sealed'

-- name: breaker_approver
select name, public, valid_from, valid_to from trusted_key where key_id = %(key_id)s and role = 'approver'

-- name: breaker_close
update breaker set closed_at = %(at)s, closing = %(closing)s, closed_size = (select next from log_head) where scope = %(scope)s and closed_at is null
returning opened_at

-- name: gauge_breakers
select split_part(scope, ':', 1), count(*)::float8 from breaker where closed_at is null group by 1

-- What a request would come to: nothing is locked or changed.
-- name: dryrun_images
select i.ordinal from image i join source s using (source_no)
where (cardinality(%(subjects)s::text[]) = 0
       or exists (select from image_subject x where x.ordinal = i.ordinal and x.subject_ref = any(%(subjects)s::text[])))
  and (%(source)s::text is null or s.name = %(source)s)
  and (%(start)s::date is null or (i.acquired_on >= %(start)s and i.acquired_on < %(end)s))
order by 1

-- name: dryrun_counts
select a.kind, s.name, count(*) from artifact a join store s using (store_no)
where a.ordinal = any(%(ordinals)s::bigint[]) group by 1, 2 order by 1, 2

-- name: dryrun_people
select count(distinct subject_ref) from image_subject where ordinal = any(%(ordinals)s::bigint[])

-- name: dryrun_held
select count(*) from unnest(%(ordinals)s::bigint[]) as t(ordinal)
where exists (select from hold h join image_subject x using (subject_ref)
              where x.ordinal = t.ordinal and h.released_at is null and (h.until is null or h.until > clock_timestamp()))
   or exists (select from hold h join image i using (source_no)
              where i.ordinal = t.ordinal and h.released_at is null and (h.until is null or h.until > clock_timestamp()))
