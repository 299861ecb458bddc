/* Batches. */
#include "harness.h"

#define PUT(key, value) {WALRUSDS_OP_PUT, S(key), S(value)}
#define DELETE(key) {WALRUSDS_OP_DELETE, S(key), NULL, 0}
#define COMMIT(ops) OK(walrusds_batch_commit(handle, NULL, ops, sizeof(ops) / sizeof *(ops), &err))

static void puts_and_deletes(void) {
  walrusds_handle handle = open_new();
  put_text(handle, "/old", "x");
  walrusds_op ops[] = {PUT("/a", "1"), DELETE("/old"), PUT("/b", "2"), DELETE("/unknown"),
                       {WALRUSDS_OP_PUT, S("/empty"), NULL, 0}};
  COMMIT(ops);
  expect_text(handle, "/a", "1");
  expect_text(handle, "/b", "2");
  expect_text(handle, "/empty", "");
  expect_text(handle, "/old", NULL);
  COMMIT(ops); /* the same again */
  expect_text(handle, "/a", "1");
  close_ok(handle);
}

static void last_one_wins(void) {
  walrusds_handle handle = open_new();
  put_text(handle, "/c", "before");
  walrusds_op ops[] = {PUT("/a", "1"), PUT("/a", "2"),    DELETE("/b"),       PUT("/b", "kept"),
                       PUT("/c", "x"), DELETE("/c"),      PUT("/d", "1"),     DELETE("/d"),
                       PUT("/d", "3"), PUT("/same", "s"), PUT("/same", "s")};
  COMMIT(ops);
  expect_text(handle, "/a", "2");
  expect_text(handle, "/b", "kept");
  expect_text(handle, "/c", NULL);
  expect_text(handle, "/d", "3");
  expect_text(handle, "/same", "s");
  uint64_t bytes = 0;
  OK(walrusds_disk_usage(handle, NULL, &bytes, &err));
  CHECK_INT(bytes, 1 + 4 + 1 + 1);
  close_ok(handle);
}

static void empty_batches(void) {
  walrusds_handle handle = open_new();
  walrusds_op op = PUT("/k", "v");
  OK(walrusds_batch_commit(handle, NULL, NULL, 0, &err));
  OK(walrusds_batch_commit(handle, NULL, &op, 0, &err));
  expect_text(handle, "/k", NULL);
  close_ok(handle);
}

static void bad_operations(void) {
  walrusds_handle handle = open_new();
  const uint32_t kinds[] = {0, 3, UINT32_MAX};
  for (size_t i = 0; i < 3; i++) {
    walrusds_op ops[] = {PUT("/k", "v"), {kinds[i], S("/x"), S("v")}};
    CALL(WALRUSDS_INVALID_ARGUMENT, text("operation 1: kind is %u", kinds[i]),
         walrusds_batch_commit(handle, NULL, ops, 2, &err));
  }
  walrusds_op nul[] = {PUT("/k", "v"), {WALRUSDS_OP_PUT, bytes_of("/a\0b"), 4, S("v")}};
  CALL(WALRUSDS_INVALID_ARGUMENT, "NUL byte", walrusds_batch_commit(handle, NULL, nul, 2, &err));
  walrusds_op not_utf8[] = {PUT("/k", "v"), PUT("/\xff", "v")};
  CALL(WALRUSDS_INVALID_ARGUMENT, "operation 1: key is not valid UTF-8",
       walrusds_batch_commit(handle, NULL, not_utf8, 2, &err));
  /* A batch that is refused had no effect. */
  expect_text(handle, "/k", NULL);
  /* A key that cannot be stored may be deleted; the value of a delete is not looked at. */
  walrusds_op deletes[] = {DELETE("/absent"), DELETE("/\xff"), {WALRUSDS_OP_DELETE, S("/k"), NULL, 99}};
  COMMIT(deletes);
  close_ok(handle);
}

static void large_batch(void) {
  walrusds_handle handle = open_new();
  size_t count = quick ? 100 : 2000, len = 3000;
  walrusds_op *ops = calloc(count, sizeof *ops);
  char(*keys)[24] = calloc(count, sizeof *keys);
  uint8_t *values = pattern(count * len, 9);
  for (size_t i = 0; i < count; i++) {
    snprintf(keys[i], sizeof keys[i], "/batch/%zu", i);
    ops[i] = (walrusds_op){WALRUSDS_OP_PUT, S(keys[i]), values + i * len, len};
  }
  OK(walrusds_batch_commit(handle, NULL, ops, count, &err));
  for (size_t i = 0; i < count; i += 37) expect_bytes(handle, keys[i], values + i * len, len);
  for (size_t i = 0; i < count; i++) ops[i].kind = WALRUSDS_OP_DELETE;
  OK(walrusds_batch_commit(handle, NULL, ops, count, &err));
  for (size_t i = 0; i < count; i += 37) expect_text(handle, keys[i], NULL);
  free(values);
  free(keys);
  free(ops);
  close_ok(handle);
}

static void failed_batch_can_be_repeated(void) {
  const char *dir = new_dir();
  walrusds_op ops[] = {PUT("/a", "1"), PUT("/b", "2")};
  walrusds_handle handle =
      open_at(config_for("http://127.0.0.1:1", net_url, ", \"maxRetries\": 0"), dir);
  CALL(WALRUSDS_WALRUS, NULL, walrusds_batch_commit(handle, NULL, ops, 2, &err));
  expect_text(handle, "/a", NULL);
  close_ok(handle);
  handle = open_at(config_for(net_url, net_url, ""), dir);
  COMMIT(ops);
  expect_text(handle, "/a", "1");
  expect_text(handle, "/b", "2");
  close_ok(handle);
}

const struct test batch_tests[] = {
    {"batch of puts and deletes", puts_and_deletes, 1},
    {"the last operation on a key wins", last_one_wins, 1},
    {"empty batches", empty_batches, 1},
    {"bad operations", bad_operations, 1},
    {"large batch", large_batch, 1},
    {"a failed batch can be repeated", failed_batch_can_be_repeated, 1},
    {NULL, NULL, 0},
};
