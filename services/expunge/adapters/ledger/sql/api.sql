-- The read API. All but the four `api_submission` and `api_token` writes run in read-only transactions.

-- name: api_token
select name, digest, scopes, publisher from api_token
where token_id = %(token_id)s and revoked_at is null and (expires_at is null or expires_at > %(at)s)

-- name: api_tokens
select token_id, name, scopes, publisher, created_at, expires_at, revoked_at from api_token order by created_at, token_id

-- name: api_put_token
insert into api_token (token_id, name, digest, scopes, publisher, created_at, expires_at)
values (%(token_id)s, %(name)s, %(digest)s, %(scopes)s::text[], %(publisher)s, %(at)s, %(expires_at)s)

-- name: api_revoke_token
update api_token set revoked_at = coalesce(revoked_at, %(at)s) where token_id = %(token_id)s

-- name: api_publisher
select from trusted_key where name = %(name)s limit 1

-- What a token may see of a request: its row, or the answer that it got. One query whether or not there is such a request.
-- name: api_request
select true, r.type, null::text, r.accepted_at from request r
where r.request_id = %(request_id)s
  and (%(publisher)s::text is null or r.key_id in (select key_id from trusted_key where name = %(publisher)s))
union all
select false, a.type, a.code, a.at from answer a
where a.request_id = %(request_id)s
  and (%(publisher)s::text is null or a.key_id in (select key_id from trusted_key where name = %(publisher)s))
order by 1 desc, 4 limit 1

-- name: api_page_start
select r.seq from request r
where r.request_id = %(request_id)s
  and (%(publisher)s::text is null or r.key_id in (select key_id from trusted_key where name = %(publisher)s))

-- name: api_requests
select r.request_id, r.type, r.class, r.state, r.accepted_at, r.due, r.data_result, r.models_result from request r
where r.seq > %(after)s and (%(state)s::text is null or r.state = %(state)s)
  and (%(publisher)s::text is null or r.key_id in (select key_id from trusted_key where name = %(publisher)s))
order by r.seq limit %(limit)s

-- name: api_models
select m.name, m.status, m.metric_void, p.name, r.name, m.clean_at, m.at,
       (select min(t.due) from taint t where t.model_no = m.model_no and t.resolved_index is null),
       (select count(*) from taint t where t.model_no = m.model_no and t.resolved_index is null)
from model m join purpose p on p.bit = m.purpose_bit left join model r on r.model_no = m.replaced_by
where m.model_no > coalesce((select model_no from model where name = %(after)s), 0)
order by m.model_no limit %(limit)s

-- name: api_keys
select key_id, role, name, public from trusted_key
where key_id = any(%(ids)s::text[]) and valid_from <= %(at)s and (valid_to is null or valid_to > %(at)s)

-- Begins a submission, or takes over one that was begun and never ended. No row: look at what is there.
-- name: api_begin
with old as (
    delete from api_submission where ctid = any(array(
        select ctid from api_submission where at < clock_timestamp() - interval '7 days' limit 100))
)
insert into api_submission as s (token_id, key_digest, body_digest, request_id)
values (%(token_id)s, %(key_digest)s, %(body_digest)s, %(request_id)s)
on conflict (token_id, key_digest) do update set at = clock_timestamp()
    where not s.done and s.body_digest = excluded.body_digest and s.at < clock_timestamp() - %(stale)s::interval
returning request_id

-- name: api_begun
select body_digest, request_id, done from api_submission where token_id = %(token_id)s and key_digest = %(key_digest)s

-- name: api_done
update api_submission set done = true where token_id = %(token_id)s and key_digest = %(key_digest)s

-- name: api_undone
delete from api_submission where token_id = %(token_id)s and key_digest = %(key_digest)s and not done
