-- Stage prove: rows become tiles and signed checkpoints.

-- name: prove_lock
select pg_try_advisory_xact_lock(1163415638)

-- name: prove_state
select (select next from log_head),
       coalesce((select max(size) from log_checkpoint where note is not null), 0),
       coalesce((select max(size) from log_checkpoint), 0)

-- Whether a statement beyond the last published checkpoint is about more than a chunk, or has waited long enough, or is
-- under a checkpoint that was intended and not published; and whether there is any.
-- name: prove_due
with state as (
    select (select next from log_head) as next,
           coalesce((select max(size) from log_checkpoint where note is not null), 0) as signed,
           coalesce((select max(size) from log_checkpoint), 0) as intended
)
select intended > signed or exists (
           select from log_entry where index >= signed
             and (predicate <> 'urn:expunge:chunk:v1' or at < clock_timestamp() - make_interval(secs => %(seconds)s::float8))),
       intended > signed or next > signed
from state

-- name: prove_hashes
select string_agg(leaf_hash, ''::bytea order by index) from log_entry where index >= %(first)s and index < %(end)s

-- name: prove_entries
select index, leaf_hash, predicate, entry from log_entry where index >= %(first)s and index < %(end)s order by index

-- name: prove_intend
insert into log_checkpoint (size, root) values (%(size)s, %(root)s) on conflict (size) do nothing

-- name: prove_root
select root from log_checkpoint where size = %(size)s

-- name: prove_signed
update log_checkpoint set note = %(note)s, attested = %(attested)s,
    attested_at = case when %(attested)s then clock_timestamp() end
where size = %(size)s and note is null

-- name: prove_note
select note from log_checkpoint where size = %(size)s

-- The newest checkpoint, and whether it covers scopes or completions that no attested one does.
-- name: attest_newest
with newest as (select size, note, token, attested from log_checkpoint where note is not null order by size desc limit 1)
select size, note, token, attested, exists (
    select from log_entry l where l.predicate in ('urn:expunge:scope:v1', 'urn:expunge:completion:v1')
      and l.index < newest.size
      and l.index >= (select coalesce(max(c.size), 0) from log_checkpoint c where c.attested and c.size < newest.size))
from newest

-- name: attest_record
update log_checkpoint set note = %(note)s, cosigned = %(cosigned)s, token = %(token)s, attested = %(attested)s,
    attested_at = case when %(attested)s then clock_timestamp() end
where size = %(size)s and note is not null and not attested and cosigned <= %(cosigned)s

-- name: attest_size
select coalesce(max(size), 0) from log_checkpoint

-- name: recover_lock
select pg_advisory_xact_lock(1163415638)

-- name: recover_put
insert into log_entry (index, leaf_hash, predicate, entry)
select * from unnest(%(indices)s::bigint[], %(hashes)s::bytea[], %(predicates)s::text[], %(entries)s::bytea[])

-- name: recover_advance
update log_head set next = %(next)s

-- name: recover_checkpoint
insert into log_checkpoint (size, root, note) values (%(size)s, %(root)s, %(note)s)
on conflict (size) do update set note = coalesce(log_checkpoint.note, excluded.note)
