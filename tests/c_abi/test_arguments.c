/* NULL for every argument of every function, and lengths that cannot be. */
#include "harness.h"

#define BAD WALRUSDS_INVALID_ARGUMENT

static void null_inputs(void) {
  walrusds_handle handle = open_new(), other;
  walrusds_query query;
  walrusds_buf out;
  walrusds_value value;
  walrusds_op op = {WALRUSDS_OP_PUT, NULL, 3, S("v")};
  walrusds_query_options bad_prefix = {.prefix_len = 3, .keys_only = true};
  bool found;
  uint64_t size;
  const char *config = config_for(net_url, net_url, "");
  const char *dir = new_dir();

  FAILS_ZEROED(BAD, "config is NULL", out, walrusds_disk_spec(NULL, 3, &out, &err));
  FAILS_ZEROED(WALRUSDS_CONFIG, "JSON", out, walrusds_disk_spec(NULL, 0, &out, &err));
  FAILS_ZEROED(BAD, "config is NULL", other, walrusds_open(NULL, 3, S(dir), NULL, &other, &err));
  FAILS_ZEROED(BAD, "repo_path is NULL", other, walrusds_open(S(config), NULL, 3, NULL, &other, &err));
  CALL(BAD, "key is NULL", walrusds_put(handle, NULL, NULL, 3, S("v"), &err));
  CALL(BAD, "value is NULL", walrusds_put(handle, NULL, S("/k"), NULL, 3, &err));
  FAILS_ZEROED(BAD, "key is NULL", out, walrusds_get(handle, NULL, NULL, 3, &out, &found, &err));
  FAILS_ZEROED(BAD, "key is NULL", found, walrusds_get(handle, NULL, NULL, 3, &out, &found, &err));
  FAILS_ZEROED(BAD, "key is NULL", value, walrusds_get_value(handle, NULL, NULL, 3, &value, &found, &err));
  FAILS_ZEROED(BAD, "key is NULL", found, walrusds_get_value(handle, NULL, NULL, 3, &value, &found, &err));
  CALL(BAD, "value is NULL", walrusds_value_take(NULL, NULL, 0, &err));
  FAILS_ZEROED(BAD, "key is NULL", found, walrusds_has(handle, NULL, NULL, 3, &found, &err));
  FAILS_ZEROED(BAD, "key is NULL", size,
               walrusds_get_size(handle, NULL, NULL, 3, &size, &found, &err));
  CALL(BAD, "key is NULL", walrusds_delete(handle, NULL, NULL, 3, &err));
  CALL(BAD, "ops is NULL", walrusds_batch_commit(handle, NULL, NULL, 3, &err));
  CALL(BAD, "operation 0: key is NULL", walrusds_batch_commit(handle, NULL, &op, 1, &err));
  op = (walrusds_op){WALRUSDS_OP_PUT, S("/k"), NULL, 3};
  CALL(BAD, "operation 0: value is NULL", walrusds_batch_commit(handle, NULL, &op, 1, &err));
  op = (walrusds_op){WALRUSDS_OP_DELETE, NULL, 3, NULL, 0};
  CALL(BAD, "operation 0: key is NULL", walrusds_batch_commit(handle, NULL, &op, 1, &err));
  FAILS_ZEROED(BAD, "options is NULL", query, walrusds_query_open(handle, NULL, NULL, &query, &err));
  FAILS_ZEROED(BAD, "prefix is NULL", query,
               walrusds_query_open(handle, NULL, &bad_prefix, &query, &err));
  CALL(BAD, "prefix is NULL", walrusds_sync(handle, NULL, NULL, 3, &err));
  expect_text(handle, "/k", NULL);
  close_ok(handle);
}

static void null_outputs(void) {
  walrusds_handle handle = open_new();
  walrusds_query query = 0;
  walrusds_query_options all = {.keys_only = true};
  walrusds_buf out;
  walrusds_value value;
  bool found;
  uint64_t size;
  const char *config = config_for(net_url, net_url, "");
  const char *dir = new_dir();
  put_text(handle, "/k", "v");
  OK(walrusds_query_open(handle, NULL, &all, &query, &err));

  CALL(BAD, "out is NULL", walrusds_disk_spec(S(config), NULL, &err));
  CALL(BAD, "out is NULL", walrusds_config_keys(NULL, &err));
  CALL(BAD, "out is NULL", walrusds_open(S(config), S(dir), NULL, NULL, &err));
  FAILS_ZEROED(BAD, "out is NULL", found, walrusds_get(handle, NULL, S("/k"), NULL, &found, &err));
  FAILS_ZEROED(BAD, "found is NULL", out, walrusds_get(handle, NULL, S("/k"), &out, NULL, &err));
  FAILS_ZEROED(BAD, "out is NULL", found, walrusds_get_value(handle, NULL, S("/k"), NULL, &found, &err));
  FAILS_ZEROED(BAD, "found is NULL", value, walrusds_get_value(handle, NULL, S("/k"), &value, NULL, &err));
  OK(walrusds_get_value(handle, NULL, S("/k"), &value, &found, &err));
  CALL(BAD, "into is NULL", walrusds_value_take(&value, NULL, 1, &err));
  walrusds_value_free(&value);
  CALL(BAD, "found is NULL", walrusds_has(handle, NULL, S("/k"), NULL, &err));
  FAILS_ZEROED(BAD, "size is NULL", found,
               walrusds_get_size(handle, NULL, S("/k"), NULL, &found, &err));
  FAILS_ZEROED(BAD, "found is NULL", size,
               walrusds_get_size(handle, NULL, S("/k"), &size, NULL, &err));
  CALL(BAD, "out is NULL", walrusds_query_open(handle, NULL, &all, NULL, &err));
  CALL(BAD, "out is NULL", walrusds_query_next(query, NULL, NULL, &err));
  CALL(BAD, "bytes is NULL", walrusds_disk_usage(handle, NULL, NULL, &err));
  CALL(BAD, "out is NULL", walrusds_metrics(handle, NULL, &err));
  CALL(BAD, "out is NULL", walrusds_open_metrics(handle, NULL, &err));
  FAILS_ZEROED(BAD, "out is NULL", found, walrusds_log_next(handle, NULL, &found, &err));
  FAILS_ZEROED(BAD, "found is NULL", out, walrusds_log_next(handle, &out, NULL, &err));
  CALL(BAD, "out is NULL", walrusds_spans(NULL, &err));
  CALL(BAD, "out is NULL", walrusds_cancel_new(NULL, &err));

  /* The page whose output was NULL was not lost. */
  walrusds_page page;
  OK(walrusds_query_next(query, NULL, &page, &err));
  CHECK_INT(page.len, 1);
  walrusds_page_free(&page);
  OK(walrusds_query_close(query, &err));
  close_ok(handle);
}

static void error_is_optional(void) {
  walrusds_handle handle = 0;
  walrusds_query query = 0;
  walrusds_cancel_token token = 0;
  walrusds_query_options all = {.keys_only = true};
  walrusds_op op = {WALRUSDS_OP_PUT, S("/b"), S("v")};
  walrusds_page page;
  walrusds_buf out;
  bool found = false;
  uint64_t number = 0;
  const char *config = config_for(net_url, net_url, "");
  const char *dir = new_dir();

  CHECK_INT(walrusds_open(S(config), S(dir), NULL, &handle, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_disk_spec(S(config), &out, NULL), WALRUSDS_OK);
  walrusds_buf_free(&out);
  CHECK_INT(walrusds_config_keys(&out, NULL), WALRUSDS_OK);
  walrusds_buf_free(&out);
  CHECK_INT(walrusds_put(handle, NULL, S("/k"), S("v"), NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_get(handle, NULL, S("/k"), &out, &found, NULL), WALRUSDS_OK);
  walrusds_buf_free(&out);
  walrusds_value value;
  uint8_t byte = 0;
  CHECK_INT(walrusds_get_value(handle, NULL, S("/k"), &value, &found, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_value_take(&value, &byte, 1, NULL), WALRUSDS_OK);
  CHECK_INT(byte, 'v');
  CHECK_INT(walrusds_has(handle, NULL, S("/k"), &found, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_get_size(handle, NULL, S("/k"), &number, &found, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_batch_commit(handle, NULL, &op, 1, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_delete(handle, NULL, S("/b"), NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_query_open(handle, NULL, &all, &query, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_query_next(query, NULL, &page, NULL), WALRUSDS_OK);
  walrusds_page_free(&page);
  CHECK_INT(walrusds_query_close(query, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_sync(handle, NULL, NULL, 0, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_disk_usage(handle, NULL, &number, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_metrics(handle, &out, NULL), WALRUSDS_OK);
  walrusds_buf_free(&out);
  CHECK_INT(walrusds_open_metrics(handle, &out, NULL), WALRUSDS_OK);
  walrusds_buf_free(&out);
  CHECK_INT(walrusds_log_next(handle, &out, &found, NULL), WALRUSDS_OK);
  walrusds_buf_free(&out);
  CHECK_INT(walrusds_spans(&out, NULL), WALRUSDS_OK);
  walrusds_buf_free(&out);
  CHECK_INT(walrusds_cancel_new(&token, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_cancel(token, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_cancel_free(token, NULL), WALRUSDS_OK);
  CHECK_INT(walrusds_close(handle, NULL), WALRUSDS_OK);

  CHECK_INT(walrusds_close(handle, NULL), WALRUSDS_CLOSED);
  CHECK_INT(walrusds_query_close(query, NULL), WALRUSDS_CLOSED);
  CHECK_INT(walrusds_cancel(token, NULL), WALRUSDS_CLOSED);
  CHECK_INT(walrusds_cancel_free(token, NULL), WALRUSDS_CLOSED);
  CHECK_INT(walrusds_put(handle, NULL, S("/k"), S("v"), NULL), WALRUSDS_CLOSED);
  CHECK_INT(walrusds_open(S("{}"), S(dir), NULL, &handle, NULL), WALRUSDS_CONFIG);
  CHECK_INT(walrusds_open(NULL, 1, NULL, 1, NULL, NULL, NULL), BAD);
  CHECK_INT(walrusds_get(0, NULL, NULL, 1, NULL, NULL, NULL), BAD);
  CHECK_INT(walrusds_get_value(0, NULL, NULL, 1, NULL, NULL, NULL), BAD);
  CHECK_INT(walrusds_value_take(NULL, NULL, 1, NULL), BAD);
}

static void impossible_lengths(void) {
  walrusds_handle handle = open_new();
  walrusds_op op = {WALRUSDS_OP_PUT, S("/k"), S("v")};
  const uint8_t *p = bytes_of("x");
  walrusds_buf out;
  bool found;
  CALL(BAD, "impossible", walrusds_put(handle, NULL, p, SIZE_MAX, S("v"), &err));
  CALL(BAD, "impossible", walrusds_put(handle, NULL, S("/k"), p, SIZE_MAX, &err));
  CALL(BAD, "impossible", walrusds_get(handle, NULL, p, (size_t)PTRDIFF_MAX + 1, &out, &found, &err));
  CALL(BAD, "impossible", walrusds_batch_commit(handle, NULL, &op, SIZE_MAX, &err));
  CALL(BAD, "impossible", walrusds_batch_commit(handle, NULL, &op, SIZE_MAX / sizeof op, &err));
  close_ok(handle);
}

static void free_nothing(void) {
  walrusds_buf buf = {NULL, 0, NULL};
  walrusds_page page = {NULL, 0, NULL};
  walrusds_error error = {0, false, {NULL, 0, NULL}};
  walrusds_value value = {0, NULL};
  for (int i = 0; i < 2; i++) {
    walrusds_value_free(NULL);
    walrusds_value_free(&value);
    OK(walrusds_value_take(&value, NULL, 0, &err));
    walrusds_buf_free(NULL);
    walrusds_buf_free(&buf);
    walrusds_page_free(NULL);
    walrusds_page_free(&page);
    walrusds_error_free(NULL);
    walrusds_error_free(&error);
  }
}

static void free_twice(void) {
  walrusds_handle handle = open_new();
  put_text(handle, "/k", "v");
  walrusds_buf out;
  walrusds_page page;
  walrusds_query query = 0;
  walrusds_query_options all = {0};
  bool found;
  walrusds_value value;
  OK(walrusds_get(handle, NULL, S("/k"), &out, &found, &err));
  OK(walrusds_get_value(handle, NULL, S("/k"), &value, &found, &err));
  OK(walrusds_query_open(handle, NULL, &all, &query, &err));
  OK(walrusds_query_next(query, NULL, &page, &err));
  OK(walrusds_query_close(query, &err));
  walrusds_error error;
  CHECK_INT(walrusds_close(0, &error), BAD);
  for (int i = 0; i < 2; i++) {
    walrusds_buf_free(&out);
    CHECK(all_zero(&out, sizeof out));
    walrusds_value_free(&value);
    CHECK(all_zero(&value, sizeof value));
    walrusds_page_free(&page);
    CHECK(all_zero(&page, sizeof page));
    walrusds_error_free(&error);
    CHECK_INT(error.code, WALRUSDS_OK);
    CHECK(all_zero(&error.message, sizeof error.message));
  }
  close_ok(handle);
}

const struct test argument_tests[] = {
    {"NULL inputs", null_inputs, 1},
    {"NULL outputs", null_outputs, 1},
    {"the error is optional", error_is_optional, 1},
    {"impossible lengths", impossible_lengths, 1},
    {"freeing nothing", free_nothing, 1},
    {"freeing twice", free_twice, 1},
    {NULL, NULL, 0},
};
