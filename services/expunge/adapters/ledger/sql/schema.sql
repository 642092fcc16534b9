-- name: schema_is_there
select to_regclass('schema_migration') is not null

-- name: schema_migrations
select number from schema_migration order by number
