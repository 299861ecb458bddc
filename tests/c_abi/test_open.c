/* Opening, closing, handles, and what can be asked without a datastore. */
#include "harness.h"

static void versions(void) { CHECK_INT(walrusds_abi_version(), WALRUSDS_ABI_VERSION); }

static void config_keys(void) {
  walrusds_buf out;
  memset(&out, 0xAA, sizeof out);
  OK(walrusds_config_keys(&out, &err));
  CHECK(is_json(out.data, out.len));
  CHECK(out.len > 0 && out.data[0] == '[');
  const char *names[] = {"publisherURL", "aggregatorURL", "postgresURL", "indexPath", "table",
                         "epochs",       "deletable",     "workers",     "verifyReads"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    CHECK(holds(out.data, out.len, text("\"key\":\"%s\"", names[i])));
  CHECK(holds(out.data, out.len, "\"secret\":true"));
  CHECK(holds(out.data, out.len, "\"type\":\"integer\""));
  CHECK(holds(out.data, out.len, "\"default\":\"walrus_index\""));
  walrusds_buf_free(&out);
}

static void disk_spec(void) {
  walrusds_buf out;
  const char *config =
      "{\"type\": \"walrusds\", \"publisherURL\": \" http://p:1 ,,http://q:2\", \"aggregatorURL\": "
      "\"http://a\", \"postgresURL\": \"postgres://u:hunter2@127.0.0.1:1/db\"}";
  OK(walrusds_disk_spec(S(config), &out, &err));
  const char *spec =
      "{\"aggregatorURL\":\"http://a\",\"publisherURL\":\"http://p:1,http://q:2\",\"table\":\"walrus_index\"}";
  CHECK_INT(out.len, strlen(spec));
  CHECK(out.len == strlen(spec) && memcmp(out.data, spec, out.len) == 0);
  walrusds_buf_free(&out);
  FAILS_ZEROED(WALRUSDS_CONFIG, "publisherURL", out, walrusds_disk_spec(S("{}"), &out, &err));
}

static void configuration_errors(void) {
  const char *dir = new_dir();
  const struct {
    const char *config;
    int32_t code;
    const char *words;
  } cases[] = {
      {"", WALRUSDS_CONFIG, "JSON"},
      {"{", WALRUSDS_CONFIG, "JSON"},
      {"[1]", WALRUSDS_CONFIG, "an array"},
      {"\xff", WALRUSDS_INVALID_ARGUMENT, "UTF-8"},
      {"{}", WALRUSDS_CONFIG, "publisherURL is required"},
      {"{\"publisherURL\": \"http://p\"}", WALRUSDS_CONFIG, "aggregatorURL is required"},
      {"{\"publisherURL\": \"http://p\", \"aggregatorURL\": \"http://a\"}", WALRUSDS_CONFIG,
       "indexPath"},
      {"{\"publisherURl\": \"http://p\"}", WALRUSDS_CONFIG, "did you mean \"publisherURL\""},
      {config_for("http://p", "http://a", ", \"epochs\": \"five\""), WALRUSDS_CONFIG,
       "epochs is the string"},
      {config_for("http://p", "http://a", ", \"epochs\": 54"), WALRUSDS_CONFIG, "from 1 to 53"},
      {config_for("http://p", "http://a", ", \"deletable\": 1"), WALRUSDS_CONFIG, "deletable"},
      {config_for("http://p", "http://a", ", \"table\": \"a b\""), WALRUSDS_CONFIG, "table"},
      {config_for("http://p", "http://a", ", \"type\": \"flatfs\""), WALRUSDS_CONFIG, "type"},
      {config_for("ftp://p", "http://a", ""), WALRUSDS_CONFIG, "publisherURL"},
      {config_for("http://p", "http://a", ", \"packFormat\": \"zip\""), WALRUSDS_CONFIG,
       "packFormat"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    walrusds_handle handle;
    FAILS_ZEROED(cases[i].code, cases[i].words, handle,
                 walrusds_open(S(cases[i].config), S(dir), NULL, &handle, &err));
    walrusds_buf out;
    FAILS_ZEROED(cases[i].code, cases[i].words, out,
                 walrusds_disk_spec(S(cases[i].config), &out, &err));
  }
}

static void check_no_secret(const char *config, int32_t code, const char *words) {
  walrusds_handle handle;
  walrusds_error err;
  const char *dir = new_dir();
  int32_t rc = walrusds_open(S(config), S(dir), NULL, &handle, &err);
  CHECK_INT(rc, code);
  CHECK(holds(err.message.data, err.message.len, words));
  CHECK(!holds(err.message.data, err.message.len, "hunter2"));
  walrusds_error_free(&err);
}

static void errors_hold_no_secret(void) {
#define PG(url) "{\"publisherURL\": \"http://p\", \"aggregatorURL\": \"http://a\", \"postgresURL\": " url "}"
  check_no_secret(PG("[\"postgres://u:hunter2@h/db\"]"), WALRUSDS_CONFIG, "postgresURL");
  check_no_secret(PG("\"postgres://u:hunter2@[bad/db\""), WALRUSDS_CONFIG, "postgresURL");
  check_no_secret(PG("\"postgres://u:hunter2@127.0.0.1:1/db?connect_timeout=2\""), WALRUSDS_INDEX, "");
#undef PG
  check_no_secret(config_for("http://u:hunter2@p", "http://a", ""), WALRUSDS_CONFIG, "publisherURL");
}

static void unusable_index(void) {
  walrusds_handle handle;
  const char *config = config_for(net_url, net_url, "");
  /* The parent is a file. */
  const char *dir = new_dir();
  const char *file = text("%s/file", dir);
  FILE *f = fopen(file, "w");
  CHECK(f != NULL && fclose(f) == 0);
  FAILS_ZEROED(WALRUSDS_CONFIG, "indexPath", handle,
               walrusds_open(S(config), S(file), NULL, &handle, &err));
  /* No database. */
  f = fopen(text("%s/index.sqlite", dir), "w");
  for (int i = 0; f != NULL && i < 1000; i++) fputs("this is no database\n", f);
  CHECK(f != NULL && fclose(f) == 0);
  FAILS_ZEROED(WALRUSDS_CORRUPT, NULL, handle,
               walrusds_open(S(config), S(dir), NULL, &handle, &err));
}

static void absolute_index_path(void) {
  /* Without a repo path only absolute paths make sense. */
  const char *dir = new_dir();
  const char *config = text("{\"publisherURL\": \"%s\", \"aggregatorURL\": \"%s\", \"indexPath\": \"%s/i\"}",
                            net_url, net_url, dir);
  walrusds_handle handle = 0;
  OK(walrusds_open(S(config), NULL, 0, NULL, &handle, &err));
  put_text(handle, "/k", "v");
  close_ok(handle);
}

static void reopen_sees_data(void) {
  const char *config = config_for(net_url, net_url, "");
  const char *dir = new_dir();
  walrusds_handle first = open_at(config, dir);
  put_text(first, "/kept", "value");
  put_text(first, "/gone", "value");
  OK(walrusds_delete(first, NULL, S("/gone"), &err));
  close_ok(first);
  walrusds_handle second = open_at(config, dir);
  CHECK(second != first);
  expect_text(second, "/kept", "value");
  expect_text(second, "/gone", NULL);
  uint64_t bytes = 0;
  OK(walrusds_disk_usage(second, NULL, &bytes, &err));
  CHECK_INT(bytes, 5);
  close_ok(second);
}

static void two_datastores(void) {
  walrusds_handle a = open_new(), b = open_new();
  CHECK(a != b);
  put_text(a, "/k", "of a");
  expect_text(b, "/k", NULL);
  put_text(b, "/k", "of b");
  expect_text(a, "/k", "of a");
  close_ok(a);
  expect_text(b, "/k", "of b");
  CALL(WALRUSDS_CLOSED, "closed", walrusds_put(a, NULL, S("/k"), S("v"), &err));
  close_ok(b);

  /* Two on one index see each other's keys. */
  const char *config = config_for(net_url, net_url, "");
  const char *dir = new_dir();
  a = open_at(config, dir);
  b = open_at(config, dir);
  put_text(a, "/shared", "x");
  expect_text(b, "/shared", "x");
  close_ok(a);
  expect_text(b, "/shared", "x");
  close_ok(b);
}

/* Every function that takes a datastore gives `code`, with its outputs zeroed. */
static void all_fail(walrusds_handle handle, int32_t code) {
  walrusds_buf out;
  bool found;
  uint64_t number;
  walrusds_op op = {WALRUSDS_OP_PUT, S("/k"), S("v")};
  walrusds_query_options all = {.keys_only = true};
  CALL(code, "datastore", walrusds_put(handle, NULL, S("/k"), S("v"), &err));
  FAILS_ZEROED(code, "datastore", out, walrusds_get(handle, NULL, S("/k"), &out, &found, &err));
  FAILS_ZEROED(code, "datastore", found, walrusds_get(handle, NULL, S("/k"), &out, &found, &err));
  walrusds_value value;
  FAILS_ZEROED(code, "datastore", value, walrusds_get_value(handle, NULL, S("/k"), &value, &found, &err));
  FAILS_ZEROED(code, "datastore", found, walrusds_get_value(handle, NULL, S("/k"), &value, &found, &err));
  FAILS_ZEROED(code, "datastore", found, walrusds_has(handle, NULL, S("/k"), &found, &err));
  FAILS_ZEROED(code, "datastore", number, walrusds_get_size(handle, NULL, S("/k"), &number, &found, &err));
  FAILS_ZEROED(code, "datastore", found, walrusds_get_size(handle, NULL, S("/k"), &number, &found, &err));
  CALL(code, "datastore", walrusds_delete(handle, NULL, S("/k"), &err));
  CALL(code, "datastore", walrusds_batch_commit(handle, NULL, &op, 1, &err));
  CALL(code, "datastore", walrusds_batch_commit(handle, NULL, NULL, 0, &err));
  FAILS_ZEROED(code, "datastore", number, walrusds_query_open(handle, NULL, &all, &number, &err));
  CALL(code, "datastore", walrusds_sync(handle, NULL, S("/"), &err));
  FAILS_ZEROED(code, "datastore", number, walrusds_disk_usage(handle, NULL, &number, &err));
  FAILS_ZEROED(code, "datastore", out, walrusds_metrics(handle, &out, &err));
  FAILS_ZEROED(code, "datastore", out, walrusds_open_metrics(handle, &out, &err));
  FAILS_ZEROED(code, "datastore", out, walrusds_log_next(handle, &out, &found, &err));
  FAILS_ZEROED(code, "datastore", found, walrusds_log_next(handle, &out, &found, &err));
  CALL(code, "datastore", walrusds_close(handle, &err));
}

static void use_after_close(void) {
  walrusds_handle handle = open_new();
  put_text(handle, "/k", "v");
  close_ok(handle);
  all_fail(handle, WALRUSDS_CLOSED);
  all_fail(handle, WALRUSDS_CLOSED);
}

static void handles_that_are_none(void) {
  walrusds_handle handle = open_new();
  walrusds_query query = 0;
  walrusds_cancel_token token = 0;
  walrusds_query_options all = {.keys_only = true};
  OK(walrusds_query_open(handle, NULL, &all, &query, &err));
  OK(walrusds_cancel_new(&token, &err));
  const uint64_t garbage[] = {0, 1, 2, 3, 4, UINT64_MAX, UINT64_MAX - 1, UINT64_MAX - 2,
                              handle + 4000000, (uint64_t)(uintptr_t)&handle};
  /* 1 << 3 | tag is the first handle of a kind, perhaps closed by now: not in the list. */
  for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
    walrusds_page page;
    walrusds_call call = {garbage[i], 0, NULL};
    all_fail(garbage[i], WALRUSDS_INVALID_ARGUMENT);
    FAILS_ZEROED(WALRUSDS_INVALID_ARGUMENT, "query", page,
                 walrusds_query_next(garbage[i], NULL, &page, &err));
    CALL(WALRUSDS_INVALID_ARGUMENT, "query", walrusds_query_close(garbage[i], &err));
    CALL(WALRUSDS_INVALID_ARGUMENT, "cancel token", walrusds_cancel(garbage[i], &err));
    CALL(WALRUSDS_INVALID_ARGUMENT, "cancel token", walrusds_cancel_free(garbage[i], &err));
    if (garbage[i] != 0)
      CALL(WALRUSDS_INVALID_ARGUMENT, "cancel token",
           walrusds_put(handle, &call, S("/k"), S("v"), &err));
  }
  /* Of another kind, though open. */
  walrusds_page page;
  all_fail(query, WALRUSDS_INVALID_ARGUMENT);
  all_fail(token, WALRUSDS_INVALID_ARGUMENT);
  FAILS_ZEROED(WALRUSDS_INVALID_ARGUMENT, "query", page, walrusds_query_next(handle, NULL, &page, &err));
  FAILS_ZEROED(WALRUSDS_INVALID_ARGUMENT, "query", page, walrusds_query_next(token, NULL, &page, &err));
  CALL(WALRUSDS_INVALID_ARGUMENT, "query", walrusds_query_close(handle, &err));
  CALL(WALRUSDS_INVALID_ARGUMENT, "cancel token", walrusds_cancel(handle, &err));
  CALL(WALRUSDS_INVALID_ARGUMENT, "cancel token", walrusds_cancel_free(query, &err));
  /* None of these calls changed the datastore. */
  OK(walrusds_query_next(query, NULL, &page, &err));
  CHECK_INT(page.len, 0);
  OK(walrusds_query_close(query, &err));
  OK(walrusds_cancel_free(token, &err));
  put_text(handle, "/k", "v");
  close_ok(handle);
}

static void stale_handle_stays_stale(void) {
  walrusds_handle old = open_new();
  close_ok(old);
  for (int i = 0; i < (quick ? 3 : 20); i++) {
    walrusds_handle handle = open_new();
    CHECK(handle != old);
    CALL(WALRUSDS_CLOSED, "closed", walrusds_put(old, NULL, S("/k"), S("v"), &err));
    close_ok(handle);
  }
}

static void metrics_and_log(void) {
  walrusds_handle handle = open_new();
  put_text(handle, "/k", "value");
  walrusds_buf out;
  bool found = true;
  OK(walrusds_metrics(handle, &out, &err));
  CHECK(is_json(out.data, out.len) && out.data[0] == '{');
  CHECK(holds(out.data, out.len, "\"blocks_put\":1"));
  CHECK(holds(out.data, out.len, "\"bytes_put\":5"));
  CHECK(holds(out.data, out.len, "\"packs_stored\":1"));
  CHECK(holds(out.data, out.len, "\"gets\":1"));
  walrusds_buf_free(&out);
  OK(walrusds_open_metrics(handle, &out, &err));
  CHECK(holds(out.data, out.len, "# TYPE walrusds_blocks_put counter\n"));
  CHECK(holds(out.data, out.len, "\nwalrusds_blocks_put_total 1\n"));
  CHECK(holds(out.data, out.len, "walrusds_operation_duration_seconds_count{operation=\"put\"} 1\n"));
  CHECK(holds(out.data, out.len, "walrusds_endpoint_healthy{role=\"publisher\",host=\"127.0.0.1:"));
  CHECK(out.len > 6 && !memcmp(out.data + out.len - 6, "# EOF\n", 6));
  walrusds_buf_free(&out);
  FAILS_ZEROED(WALRUSDS_OK, NULL, out, walrusds_log_next(handle, &out, &found, &err));
  CHECK(!found);
  close_ok(handle);

  /* A node that cannot know when its data ends says so at its start. */
  const char *dir = new_dir();
  handle = open_at(config_for(net_url, net_url, ""), dir);
  OK(walrusds_log_next(handle, &out, &found, &err));
  CHECK(found && holds(out.data, out.len, "\"level\":\"error\""));
  CHECK(holds(out.data, out.len, "network"));
  walrusds_buf_free(&out);
  close_ok(handle);

  /* A renewal that cannot reach a publisher logs a line. */
  dir = new_dir();
  handle = open_at(config_for(net_url, net_url, ", \"epochDurationSeconds\": 86400"), dir);
  put_text(handle, "/k", "value");
  close_ok(handle);
  handle = open_at(config_for("http://127.0.0.1:1", "http://127.0.0.1:1",
                              ", \"epochDurationSeconds\": 86400, \"renewIntervalSeconds\": 1, "
                              "\"renewLeadSeconds\": 864000, \"maxRetries\": 0"),
                   dir);
  found = false;
  for (int64_t began = now_ms(); !found && now_ms() - began < 30000; sleep_ms(20))
    OK(walrusds_log_next(handle, &out, &found, &err));
  CHECK(found);
  CHECK(is_json(out.data, out.len));
  CHECK(holds(out.data, out.len, "\"level\":\"warn\"") || holds(out.data, out.len, "\"level\":\"error\""));
  CHECK(holds(out.data, out.len, "\"time_ms\":1"));
  CHECK(holds(out.data, out.len, "\"message\":\""));
  walrusds_buf_free(&out);
  close_ok(handle);
}

static void usage_and_sync(void) {
  walrusds_handle handle = open_new();
  uint64_t bytes = 1;
  OK(walrusds_disk_usage(handle, NULL, &bytes, &err));
  CHECK_INT(bytes, 0);
  put_text(handle, "/a", "12345");
  put_text(handle, "/b", "123");
  put_text(handle, "/a", "1234");
  OK(walrusds_disk_usage(handle, NULL, &bytes, &err));
  CHECK_INT(bytes, 7);
  OK(walrusds_delete(handle, NULL, S("/b"), &err));
  OK(walrusds_delete(handle, NULL, S("/b"), &err));
  OK(walrusds_disk_usage(handle, NULL, &bytes, &err));
  CHECK_INT(bytes, 4);
  OK(walrusds_sync(handle, NULL, S("/"), &err));
  OK(walrusds_sync(handle, NULL, NULL, 0, &err));
  OK(walrusds_sync(handle, NULL, bytes_of("\xff"), 1, &err));
  close_ok(handle);
}

const struct test open_tests[] = {
    {"versions", versions, 1},
    {"config keys", config_keys, 1},
    {"disk spec", disk_spec, 1},
    {"configuration errors name the key", configuration_errors, 1},
    {"errors hold no secret", errors_hold_no_secret, 1},
    {"unusable index", unusable_index, 1},
    {"absolute index path", absolute_index_path, 1},
    {"reopen sees data", reopen_sees_data, 1},
    {"two datastores", two_datastores, 1},
    {"use after close", use_after_close, 1},
    {"handles that are none", handles_that_are_none, 1},
    {"stale handle stays stale", stale_handle_stays_stale, 1},
    {"metrics and log", metrics_and_log, 1},
    {"usage and sync", usage_and_sync, 1},
    {NULL, NULL, 0},
};
