"""Backup and restore of a cluster, as docs/howto/scale-out.md has it: back up, wipe, restore, and clients see the same."""

import dataclasses

from mini_assistant.administration import migrate_database
from mini_assistant.app import running_server
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from tests.postgres_server import PostgresServer
from tests.s3_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server
from tests.server_contents import fill, seen


async def test_what_was_backed_up_is_seen_again(
    settings: Settings, endpoint: ScriptedEndpoint, postgres: PostgresServer, s3: S3Server, s3_bucket: str
) -> None:
    cluster = dataclasses.replace(
        settings,
        database_url=postgres.create_database("backed_up"),
        blobs_url=f"s3://{s3_bucket}/files",
        s3_endpoint_url=s3.url,
        s3_access_key_id=ACCESS_KEY_ID,
        s3_secret_access_key=SECRET_ACCESS_KEY,
    )
    try:
        migrate_database(cluster)
        async with running_server(cluster) as address:
            store_id, _ = await fill(address)
            before = await seen(address, store_id)
            # While it runs, the database first: every file that its rows name is in the copy of the bucket.
            dump = postgres.dump("backed_up")
            objects = {key: s3.get(s3_bucket, key) for key in s3.keys(s3_bucket)}
        assert objects
        postgres.drop_database("backed_up")
        s3.drop_bucket(s3_bucket)

        s3.make_bucket(s3_bucket)
        for key, content in objects.items():
            s3.put(s3_bucket, key, content)
        postgres.create_database("backed_up")
        postgres.restore("backed_up", dump)
        migrate_database(cluster)
        async with running_server(cluster) as address:
            assert await seen(address, store_id) == before
            await fill(address)
    finally:
        postgres.drop_database("backed_up")
