-- The read side: where a request stands, and what its certificates are assembled from. Changes nothing.

-- name: readside_request
select r.request_id, r.type, r.class, r.state, r.due, r.accepted_at, r.sweep_id, r.data_result, r.models_result,
       r.images, r.artifacts, s.state, s.scope_digest, s.scope_index, s.bucket, s.leaves,
       (select count(*) from work w where w.sweep_id = r.sweep_id and w.step <> 'done'),
       (select count(*) from approval a where a.request_id = r.request_id)
from request r left join sweep s using (sweep_id) where r.request_id = %(request_id)s

-- name: readside_certificates
select provision, sweep_id, round, result, digest from certificate
where request_id = %(request_id)s order by round

-- name: readside_box
select c.sweep_id, c.round, c.result, c.digest, c.position, c.length, r.file_digest, q.bucket, s.bucket, s.trees
from certificate c
join round r on r.sweep_id = c.sweep_id and r.round = c.round
join request q on q.request_id = c.request_id
join sweep s on s.sweep_id = c.sweep_id
where c.request_id = %(request_id)s and c.provision = %(provision)s
order by r.log_index desc limit 1

-- The checkpoint to prove inclusion under: one that others vouch for and that covers every statement about the sweep, else
-- one that covers the round, else the newest. All of them cover the round.
-- name: readside_checkpoint
select size, note, token from log_checkpoint where note is not null and size > %(completion)s
order by (attested and size > %(last)s) desc, attested desc, token is not null desc, size desc
limit 1

-- The first checkpoint that others vouch for and that covers the scope: what work waited for.
-- name: readside_scope_checkpoint
select size, note, token from log_checkpoint
where attested and note is not null and (cosigned > 0 or token is not null) and size > %(scope)s and size < %(size)s
order by size limit 1

-- name: readside_positions
select (select scope_index from sweep where sweep_id = %(sweep_id)s),
       (select log_index from round where sweep_id = %(sweep_id)s and round = %(round)s),
       (select coalesce(max(size), 0) from log_checkpoint where note is not null)

-- name: readside_statements
-- Everything logged about one sweep: scope, approval, chunks, rounds, and what was said of its models. A statement that
-- resolves a model's taint may come before or after the round; it names its sweeps.
with about as (
    select scope_index as index from sweep where sweep_id = %(sweep_id)s
    union select approved_index from sweep where sweep_id = %(sweep_id)s and approved_index is not null
    union select log_index from outcome where sweep_id = %(sweep_id)s and log_index is not null
    union select log_index from round where sweep_id = %(sweep_id)s
    union select resolved_index from taint where sweep_id = %(sweep_id)s and resolved_index is not null
    union select l.index from log_entry l
          where l.predicate in ('urn:expunge:model-tainted:v1', 'urn:expunge:metric-void:v1', 'urn:expunge:overdue:v1',
                              'urn:expunge:scope-unwitnessed:v1')
            and l.index > (select scope_index from sweep where sweep_id = %(sweep_id)s)
            and convert_from(decode(convert_from(l.entry, 'UTF8')::jsonb ->> 'payload', 'base64'), 'UTF8')::jsonb
                -> 'predicate' ->> 'sweep' = %(sweep_id)s::text
    -- A reconciliation that followed an order looked for its scope.
    union select l.index from log_entry l
          where l.predicate = 'urn:expunge:reconciliation:v1'
            and l.index > (select scope_index from sweep where sweep_id = %(sweep_id)s)
            and convert_from(decode(convert_from(l.entry, 'UTF8')::jsonb ->> 'payload', 'base64'), 'UTF8')::jsonb
                #>> '{predicate,sweep,sweep}' = %(sweep_id)s::text
)
select l.index, l.entry from log_entry l join about using (index) where l.index < %(size)s order by l.index

-- name: readside_covered
select tree, count(distinct chunk) from outcome where sweep_id = %(sweep_id)s and log_index is not null group by tree

-- name: readside_bucket
select bucket from sweep where sweep_id = %(sweep_id)s

-- name: readside_scope
select s.sweep_id, s.bucket, s.requests, s.scope_digest, s.file_digest
from request r join sweep s using (sweep_id) where r.request_id = %(request_id)s

-- name: readside_models
select m.name, m.status, m.metric_void, p.name, r.name, m.clean_at, m.at,
       coalesce((select min(t.due) from taint t where t.model_no = m.model_no and t.resolved_index is null), null),
       (select count(*) from taint t where t.model_no = m.model_no and t.resolved_index is null)
from model m join purpose p on p.bit = m.purpose_bit left join model r on r.model_no = m.replaced_by
order by m.model_no

-- name: readside_model
select m.model_no, m.name, m.status, m.metric_void, p.name, r.name, m.clean_at, m.weights_digest, m.metrics, m.manifest,
       m.at
from model m join purpose p on p.bit = m.purpose_bit left join model r on r.model_no = m.replaced_by
where m.name = %(name)s

-- name: readside_model_taints
select t.sweep_id, t.images, t.direct, t.path, t.remedy, t.due, t.resolution, t.resolved_index, s.scope_index
from taint t join sweep s using (sweep_id) where t.model_no = %(model_no)s order by s.scope_index

-- name: readside_model_parents
select p.name, e.relation from model_edge e join model p on p.model_no = e.parent_no
where e.child_no = %(model_no)s order by p.name

-- name: readside_log_size
select next from log_head

-- name: readside_put_keys
insert into trusted_key (key_id, role, name, public, scope, valid_from)
select t.key_id, t.role, t.name, t.public, t.scope::jsonb, %(at)s
from unnest(%(ids)s::text[], %(roles)s::text[], %(names)s::text[], %(publics)s::bytea[], %(scopes)s::text[])
     as t(key_id, role, name, public, scope)
on conflict (key_id) do nothing

-- name: readside_approvers
select name, public, valid_from, valid_to from trusted_key where role = 'approver' order by key_id
