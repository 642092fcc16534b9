-- Stage prove: rows become tiles and signed checkpoints.

-- name: prove_lock
select pg_try_advisory_xact_lock(1163415638)

-- name: prove_state
select (select next from log_head),
       coalesce((select max(size) from log_checkpoint where note is not null), 0),
       coalesce((select max(size) from log_checkpoint), 0)

-- name: prove_hashes
select string_agg(leaf_hash, ''::bytea order by index) from log_entry where index >= %(first)s and index < %(end)s

-- name: prove_entries
select index, leaf_hash, predicate, entry from log_entry where index >= %(first)s and index < %(end)s order by index

-- name: prove_intend
insert into log_checkpoint (size, root) values (%(size)s, %(root)s) on conflict (size) do nothing

-- name: prove_root
select root from log_checkpoint where size = %(size)s

-- name: prove_signed
update log_checkpoint set note = %(note)s where size = %(size)s and note is null
