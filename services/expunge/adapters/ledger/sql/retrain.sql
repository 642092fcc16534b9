-- Stage retrain: the models, what taints them, jobs for trainers, and how they were replaced or destroyed.

-- Held by every commit of this stage: a model that arrives and a sweep that is resolved never miss each other.
-- name: retrain_lock
select pg_advisory_xact_lock(1163416148)

-- `linked`: everything that it names is here. `known`: and says all that went into it.
-- name: retrain_models
select m.model_no, m.name, m.purpose_bit, m.status, x.linked,
       x.linked and not x.unknown and (cardinality(x.snapshots) > 0 or (x.sources > 0 and not x.own_data)),
       x.snapshots, m.weights_digest, m.weights_store, m.weights_unit, m.weights_locator, m.metric_void
from model m cross join lateral (
    select coalesce(array_agg(s.snapshot_no order by s.snapshot_no) filter (where s.snapshot_no is not null), '{}') as snapshots,
           coalesce(bool_or(s.grade = 'unknown'), false) as unknown,
           count(s.snapshot_no) = jsonb_array_length(m.manifest -> 'trained_on')
           and (select count(*) from model_edge e where e.child_no = m.model_no)
               = jsonb_array_length(coalesce(m.manifest -> 'parents', '[]')) as linked,
           (select count(*) from model_edge e where e.child_no = m.model_no and e.relation <> 'evaluated-on') as sources,
           exists (select from model_edge e where e.child_no = m.model_no
                   and e.relation not in ('evaluated-on', 'merged-from', 'quantised-from')) as own_data
    from model_snapshot k join snapshot s using (snapshot_no) where k.model_no = m.model_no
) x order by m.model_no

-- name: retrain_edges
select child_no, parent_no, relation from model_edge

-- name: retrain_snapshots
select snapshot_no, root from snapshot

-- name: retrain_bitmaps
select root, bitmap from snapshot where root = any(%(roots)s::bytea[])

-- name: retrain_purposes
select bit from purpose order by 1

-- name: retrain_sweeps
select sweep_id, bucket, scope_digest, scope_index, sealed_at, taint from sweep where sweep_id = any(%(ids)s::uuid[])

-- name: retrain_lock_sweeps
select sweep_id, taint from sweep where sweep_id = any(%(ids)s::uuid[]) order by 1 for update

-- name: retrain_requests
select leaf, class, state, body from request where sweep_id = %(sweep_id)s and (class = 'order' or state in ('cancelled', 'void'))

-- name: retrain_exclude
insert into exclusion (sweep_id, purpose_bit, images, bitmap, log_index)
select %(sweep_id)s, t.*, %(log_index)s from unnest(%(purposes)s::smallint[], %(images)s::bigint[], %(bitmaps)s::bytea[]) as t
on conflict do nothing

-- name: retrain_exclusions
select sweep_id, purpose_bit, bitmap from exclusion where purpose_bit = any(%(purposes)s::smallint[])

-- name: retrain_resolved
update sweep set taint = 'resolved', moved_at = clock_timestamp() where sweep_id = %(sweep_id)s

-- name: retrain_taints
select model_no from taint where sweep_id = %(sweep_id)s

-- name: retrain_put_taints
insert into taint (sweep_id, model_no, requests, images, direct, path, remedy, due)
select %(sweep_id)s, t.model_no, t.requests, t.images, t.direct, t.path, t.remedy, %(due)s
from unnest(%(models)s::integer[], %(requests)s::bytea[], %(images)s::bigint[], %(direct)s::bigint[], %(paths)s::jsonb[],
            %(remedies)s::text[]) as t(model_no, requests, images, direct, path, remedy)

-- name: retrain_tainted
update model set status = 'tainted', clean_at = null
where model_no = any(%(models)s::integer[]) and status in ('clean', 'unknown', 'tainted')

-- name: retrain_void
update model set metric_void = true where model_no = any(%(models)s::integer[])

-- name: retrain_judged
update model set status = %(status)s, clean_at = %(clean_at)s
where model_no = %(model)s and status in ('clean', 'unknown', 'tainted')

-- name: retrain_log_size
select next from log_head

-- name: retrain_jobs
select job_id, models, state, cut, excluded, due from retraining where state in ('queued', 'leased') order by seq for update

-- name: retrain_job
select models, state, cut, excluded, exclusion_digest from retraining where job_id = %(job_id)s

-- name: retrain_put_job
insert into retraining (job_id, models, state, cut, excluded, exclusion_digest, due, at)
values (%(job_id)s, %(models)s, 'queued', %(cut)s, %(excluded)s, %(digest)s, %(due)s, %(at)s)
on conflict (job_id) do update set models = excluded.models, cut = excluded.cut, excluded = excluded.excluded,
    exclusion_digest = excluded.exclusion_digest, due = excluded.due

-- name: retrain_drop_jobs
delete from retraining where job_id = any(%(ids)s::uuid[]) and state = 'queued'

-- name: retrain_requeue
update retraining set state = %(state)s, leased_by = null, lease_until = null
where job_id = %(job_id)s and state in ('queued', 'leased')

-- name: retrain_job_models
update retraining set models = %(models)s::integer[], state = case when cardinality(%(models)s::integer[]) = 0 then 'done' else state end
where job_id = %(job_id)s

-- name: retrain_finish_jobs
update retraining r set state = 'done', leased_by = null, lease_until = null
where r.state in ('queued', 'leased') and not exists (
    select from model m where m.model_no = any(r.models) and m.status not in ('replaced', 'destroyed'))
returning job_id

-- name: retrain_sharing
select name from model
where weights_store = %(store)s and weights_unit = %(unit)s and weights_locator = %(locator)s and name <> %(model)s
  and status not in ('replaced', 'destroyed')

-- name: retrain_fence
select nextval('fence')

-- name: retrain_remediating
update model set status = 'remediating' where name = %(model)s and status in ('tainted', 'remediating')

-- name: retrain_open_taints
select t.sweep_id, t.remedy, s.scope_index from taint t join sweep s using (sweep_id)
where t.model_no = %(model)s and t.resolved_index is null order by s.scope_index

-- name: retrain_resolve
update taint t set resolved_index = r.index, resolution = %(resolution)s
from unnest(%(sweeps)s::uuid[], %(indices)s::bigint[]) as r(sweep_id, index)
where t.sweep_id = r.sweep_id and t.model_no = %(model)s

-- name: retrain_pass_on
delete from taint t where t.model_no = %(model)s and t.resolved_index is null and t.sweep_id = any(%(sweeps)s::uuid[])

-- name: retrain_gone
update model set status = %(status)s, replaced_by = %(successor)s where model_no = %(model)s

-- Standing, for people and for deployment gates.

-- name: standing_list
select m.name, p.name, m.status, m.metric_void, m.clean_at, s.name,
       (select count(*) from taint t where t.model_no = m.model_no and t.resolved_index is null),
       (select min(t.due) from taint t where t.model_no = m.model_no and t.resolved_index is null)
from model m join purpose p on p.bit = m.purpose_bit left join model s on s.model_no = m.replaced_by order by m.name

-- name: standing_model
select m.name, p.name, m.status, m.metric_void, m.clean_at, s.name, m.metrics, m.weights_digest
from model m join purpose p on p.bit = m.purpose_bit left join model s on s.model_no = m.replaced_by where m.name = %(name)s

-- name: standing_taints
select t.sweep_id, t.images, t.direct, t.path, t.remedy, t.due, t.resolution, t.resolved_index
from taint t join model m using (model_no) where m.name = %(name)s order by t.due, t.sweep_id

-- name: standing_pending
select count(*) from sweep where state in ('published', 'done') and taint <> 'resolved' and scope_index < %(position)s
