-- Since when a checkpoint waits for witnesses and the time stamp: what the gauge of unattested checkpoints counts from.
-- Expand only; `now()` is the same for all rows that are there, so none is rewritten.
alter table log_checkpoint add column made_at timestamptz not null default now();
