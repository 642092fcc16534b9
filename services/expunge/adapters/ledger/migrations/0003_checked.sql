-- When certify last looked at a sweep that stands still: it looks again later, not at every turn.
alter table sweep add column checked_at timestamptz;
