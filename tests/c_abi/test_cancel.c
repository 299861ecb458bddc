/* Cancel tokens and deadlines. */
#include "harness.h"

static walrusds_cancel_token token_new(void) {
  walrusds_cancel_token token = 0;
  OK(walrusds_cancel_new(&token, &err));
  CHECK(token != 0);
  return token;
}

static walrusds_handle open_slow(void) {
  return open_at(config_for(slow_url, slow_url, ", \"blobCacheBytes\": -1"), new_dir());
}

/* Checks that every call that can wait ends with the expected code when it is made with `call`. */
static void all_end(walrusds_handle handle, walrusds_query query, const walrusds_call *call,
                    int32_t code, const char *words) {
  walrusds_buf out;
  walrusds_page page;
  walrusds_handle other;
  bool found;
  uint64_t number;
  walrusds_op op = {WALRUSDS_OP_PUT, S("/new"), S("v")};
  const char *config = config_for(net_url, net_url, "");
  const char *dir = new_dir();
  FAILS_ZEROED(code, words, other, walrusds_open(S(config), S(dir), call, &other, &err));
  CALL(code, words, walrusds_put(handle, call, S("/new"), S("v"), &err));
  FAILS_ZEROED(code, words, out, walrusds_get(handle, call, S("/k"), &out, &found, &err));
  FAILS_ZEROED(code, words, found, walrusds_has(handle, call, S("/k"), &found, &err));
  FAILS_ZEROED(code, words, number, walrusds_get_size(handle, call, S("/k"), &number, &found, &err));
  CALL(code, words, walrusds_delete(handle, call, S("/k"), &err));
  CALL(code, words, walrusds_batch_commit(handle, call, &op, 1, &err));
  FAILS_ZEROED(code, words, page, walrusds_query_next(query, call, &page, &err));
  CALL(code, words, walrusds_sync(handle, call, S("/"), &err));
  FAILS_ZEROED(code, words, number, walrusds_disk_usage(handle, call, &number, &err));
}

static void cancelled_before(void) {
  walrusds_handle handle = open_new();
  walrusds_query query = 0;
  walrusds_query_options all = {.keys_only = true};
  put_text(handle, "/k", "v");
  OK(walrusds_query_open(handle, NULL, &all, &query, &err));
  walrusds_call call = {token_new(), 0, NULL};
  OK(walrusds_cancel(call.cancel, &err));
  all_end(handle, query, &call, WALRUSDS_CANCELED, "cancelled");
  call.timeout_ms = 60000;
  all_end(handle, query, &call, WALRUSDS_CANCELED, "cancelled");
  OK(walrusds_cancel(call.cancel, &err)); /* again */
  OK(walrusds_cancel_free(call.cancel, &err));
  /* A token that was freed is an error, not a call that cannot be cancelled. */
  all_end(handle, query, &call, WALRUSDS_CLOSED, "cancel token is closed");
  CALL(WALRUSDS_CLOSED, "cancel token", walrusds_cancel(call.cancel, &err));
  CALL(WALRUSDS_CLOSED, "cancel token", walrusds_cancel_free(call.cancel, &err));
  /* None of these calls had an effect. */
  expect_text(handle, "/k", "v");
  expect_text(handle, "/new", NULL);
  walrusds_page page;
  OK(walrusds_query_next(query, NULL, &page, &err));
  CHECK_INT(page.len, 1);
  walrusds_page_free(&page);
  OK(walrusds_query_close(query, &err));
  close_ok(handle);
}

static void calls_with_a_token_that_is_not_cancelled(void) {
  walrusds_handle handle = 0;
  walrusds_call call = {token_new(), 60000, NULL};
  const char *config = config_for(net_url, net_url, "");
  const char *dir = new_dir();
  walrusds_buf out;
  bool found = false;
  uint64_t bytes;
  OK(walrusds_open(S(config), S(dir), &call, &handle, &err));
  for (int i = 0; i < 3; i++) {
    OK(walrusds_put(handle, &call, S("/k"), S("v"), &err));
    OK(walrusds_get(handle, &call, S("/k"), &out, &found, &err));
    CHECK(found && out.len == 1);
    walrusds_buf_free(&out);
    call.timeout_ms = i == 0 ? 0 : UINT64_MAX; /* none, and one that never comes */
  }
  OK(walrusds_sync(handle, &call, S("/"), &err));
  OK(walrusds_disk_usage(handle, &call, &bytes, &err));
  OK(walrusds_cancel_free(call.cancel, &err));
  close_ok(handle);
}

struct waiter {
  walrusds_handle handle;
  walrusds_call call;
  const char *key;
  int write;
  int32_t expected;
  int64_t ended;
};

static void *wait_for_it(void *arg) {
  struct waiter *w = arg;
  walrusds_buf out = {NULL, 0, NULL};
  bool found;
  if (w->write)
    CALL(w->expected, NULL, walrusds_put(w->handle, &w->call, S(w->key), S(new_value()), &err));
  else
    CALL(w->expected, NULL, walrusds_get(w->handle, &w->call, S(w->key), &out, &found, &err));
  w->ended = now_ms();
  walrusds_buf_free(&out);
  return NULL;
}

/* A busy machine may delay some thread for longer than the library does. */
static void check_prompt(int64_t first, int64_t last) {
  if (first < 0 || first > prompt_ms || last > slow_ms / 2)
    failed(__FILE__, __LINE__, "waits that were given up ended after %lld to %lld ms",
           (long long)first, (long long)last);
}

static void cancelled_during(int write) {
  walrusds_handle handle = open_slow();
  if (!write) OK(walrusds_put(handle, NULL, S("/k"), S("value"), &err));
  enum { COUNT = 4 };
  struct waiter waiters[COUNT];
  pthread_t threads[COUNT];
  walrusds_cancel_token token = token_new();
  for (int i = 0; i < COUNT; i++) {
    waiters[i] = (struct waiter){.handle = handle,
                                 .call = {token, i % 2 ? 0 : 600000},
                                 .key = write ? text("/new/%d", i) : "/k",
                                 .write = write,
                                 .expected = WALRUSDS_CANCELED};
    threads[i] = start(wait_for_it, &waiters[i]);
  }
  sleep_ms(slow_ms / 8);
  int64_t cancelled = now_ms();
  OK(walrusds_cancel(token, &err));
  int64_t first = INT64_MAX, last = 0;
  for (int i = 0; i < COUNT; i++) {
    join(threads[i]);
    int64_t took = waiters[i].ended - cancelled;
    if (took < first) first = took;
    if (took > last) last = took;
  }
  check_prompt(first, last);
  OK(walrusds_cancel_free(token, &err));
  if (write) {
    for (int i = 0; i < COUNT; i++) expect_text(handle, waiters[i].key, NULL);
    /* The key does not appear later either, when the upload would have been over. */
    if (!quick) sleep_ms(slow_ms + 200);
    for (int i = 0; i < COUNT; i++) expect_text(handle, waiters[i].key, NULL);
  }
  int64_t began = now_ms();
  close_ok(handle);
  CHECK(now_ms() - began < slow_ms / 2); /* nobody waits for what was given up */
}

static void put_cancelled_during(void) { cancelled_during(1); }
static void get_cancelled_during(void) { cancelled_during(0); }

static int64_t late_once(walrusds_handle handle, int write) {
  walrusds_call call = {0, 200, NULL};
  walrusds_error err;
  walrusds_buf out = {NULL, 0, NULL};
  bool found = false;
  int64_t began = now_ms();
  int32_t rc = write ? walrusds_put(handle, &call, S("/new"), S(new_value()), &err)
                     : walrusds_get(handle, &call, S("/k"), &out, &found, &err);
  int64_t took = now_ms() - began;
  CHECK_INT(rc, WALRUSDS_DEADLINE_EXCEEDED);
  CHECK(err.retryable);
  CHECK(holds(err.message.data, err.message.len, "200 ms"));
  CHECK(!found && out.data == NULL);
  walrusds_error_free(&err);
  CHECK(took >= 199);
  return took - 200;
}

static void late(int write) {
  walrusds_handle handle = open_slow();
  if (!write) OK(walrusds_put(handle, NULL, S("/k"), S("value"), &err));
  int64_t first = INT64_MAX, last = 0;
  for (int i = 0; i < 3; i++) {
    int64_t took = late_once(handle, write);
    if (took < first) first = took;
    if (took > last) last = took;
  }
  check_prompt(first < 0 ? 0 : first, last);
  if (write) expect_text(handle, "/new", NULL);
  close_ok(handle);
}

static void put_deadline(void) { late(1); }
static void get_deadline(void) { late(0); }

static void *list_slowly(void *arg) {
  struct waiter *w = arg;
  walrusds_page page;
  FAILS_ZEROED(w->expected, NULL, page, walrusds_query_next(w->handle, &w->call, &page, &err));
  w->ended = now_ms();
  walrusds_page_free(&page);
  return NULL;
}

static void listing_cancelled_during(void) {
  walrusds_handle handle = open_slow();
  OK(walrusds_put(handle, NULL, S("/k"), S("value"), &err));
  walrusds_query query = 0;
  walrusds_query_options all = {0};
  OK(walrusds_query_open(handle, NULL, &all, &query, &err));
  walrusds_cancel_token token = token_new();
  struct waiter w = {.handle = query, .call = {token, 0}, .expected = WALRUSDS_CANCELED};
  pthread_t thread = start(list_slowly, &w);
  sleep_ms(slow_ms / 8);
  int64_t cancelled = now_ms();
  OK(walrusds_cancel(token, &err));
  join(thread);
  check_prompt(w.ended - cancelled, w.ended - cancelled);
  OK(walrusds_cancel_free(token, &err));
  /* The page was not lost: it can be asked for again. */
  walrusds_page page;
  OK(walrusds_query_next(query, NULL, &page, &err));
  CHECK_INT(page.len, 1);
  CHECK(page.len == 1 && page.entries[0].value_len == 5);
  walrusds_page_free(&page);
  OK(walrusds_query_close(query, &err));
  close_ok(handle);
}

static void freed_during(void) {
  /* The call goes on, and can no longer be cancelled. */
  walrusds_handle handle = open_slow();
  walrusds_cancel_token token = token_new();
  struct waiter w = {.handle = handle, .call = {token, 0}, .key = "/k", .write = 1};
  pthread_t thread = start(wait_for_it, &w);
  sleep_ms(slow_ms / 8);
  OK(walrusds_cancel_free(token, &err));
  CALL(WALRUSDS_CLOSED, NULL, walrusds_cancel(token, &err));
  join(thread);
  bool found = false;
  OK(walrusds_has(handle, NULL, S("/k"), &found, &err));
  CHECK(found);
  close_ok(handle);
}

static void cancel_one_of_two(void) {
  walrusds_handle handle = open_slow();
  walrusds_cancel_token one = token_new(), two = token_new();
  CHECK(one != two);
  struct waiter a = {.handle = handle, .call = {one, 0}, .key = "/a", .write = 1,
                     .expected = WALRUSDS_CANCELED};
  struct waiter b = {.handle = handle, .call = {two, 0}, .key = "/b", .write = 1};
  pthread_t thread_a = start(wait_for_it, &a), thread_b = start(wait_for_it, &b);
  sleep_ms(slow_ms / 8);
  OK(walrusds_cancel(one, &err));
  join(thread_a);
  join(thread_b);
  bool found = true;
  OK(walrusds_has(handle, NULL, S("/a"), &found, &err));
  CHECK(!found);
  OK(walrusds_has(handle, NULL, S("/b"), &found, &err));
  CHECK(found);
  OK(walrusds_cancel_free(one, &err));
  OK(walrusds_cancel_free(two, &err));
  close_ok(handle);
}

static void close_waits_for_calls(void) {
  walrusds_handle handle = open_slow();
  struct waiter w = {.handle = handle, .key = "/k", .write = 1};
  pthread_t thread = start(wait_for_it, &w);
  sleep_ms(slow_ms / 8);
  int64_t began = now_ms();
  close_ok(handle);
  int64_t closed = now_ms();
  CHECK(closed - began > slow_ms / 2);
  join(thread);
  /* The put was over before close returned, except for the thread's own exit. */
  CHECK(w.ended <= closed + slow_ms / 4);
}

const struct test cancel_tests[] = {
    {"cancelled before", cancelled_before, 1},
    {"calls with a token that is not cancelled", calls_with_a_token_that_is_not_cancelled, 1},
    {"puts cancelled while they wait", put_cancelled_during, 1},
    {"gets cancelled while they wait", get_cancelled_during, 1},
    {"a listing cancelled while it waits", listing_cancelled_during, 1},
    {"deadline of a put", put_deadline, 1},
    {"deadline of a get", get_deadline, 1},
    {"a token freed while a call uses it", freed_during, 0},
    {"cancelling one of two calls", cancel_one_of_two, 0},
    {"close waits for calls", close_waits_for_calls, 0},
    {NULL, NULL, 0},
};
