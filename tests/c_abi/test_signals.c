/* The library leaves the host's signals alone. */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

static void no_handlers(void) {
  /* A program that is started (and its end) is no exception. The publisher does not know what to
   * do with this token, but the program has run. */
  const char *dir = new_dir();
  const char *more = text(", \"maxRetries\": 0, \"authTokenCommand\": \"echo x | tee %s/ran\"", dir);
  walrusds_handle handle = open_at(config_for(net_url, net_url, more), dir);
  CALL(WALRUSDS_WALRUS, "token", walrusds_put(handle, NULL, S("/k"), S("v"), &err));
  CHECK(access(text("%s/ran", dir), F_OK) == 0);
  close_ok(handle);
  for (int s = 1; s < 32; s++) {
    struct sigaction action;
    if (s == SIGKILL || s == SIGSTOP || sigaction(s, NULL, &action) != 0) continue;
    /* The sanitizers have some of their own. Where there is no pidfd (Linux before 5.3, valgrind)
     * the end of a program is noticed by SIGCHLD. */
    if (s == SIGSEGV || s == SIGBUS || s == SIGFPE || s == SIGILL || (quick && s == SIGCHLD)) continue;
    if (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN)
      failed(__FILE__, __LINE__, "there is a handler for signal %d", s);
  }
}

static atomic_int got_sigpipe;
static void on_sigpipe(int s) {
  (void)s;
  atomic_store(&got_sigpipe, 1);
}

static int listener;

/* A server that does not speak TLS: answers in plain text, sends FIN and then RST. A client that
 * wants to say why it goes away writes to a closed peer. */
static void *hang_up(void *arg) {
  (void)arg;
  for (;;) {
    int peer = accept(listener, NULL, NULL);
    if (peer < 0) return NULL;
    const char *answer = "HTTP/1.1 400 Bad Request\r\n\r\n";
    sleep_ms(5); /* the client's hello is here, and stays unread: close sends RST */
    if (send(peer, answer, strlen(answer), MSG_NOSIGNAL) > 0) shutdown(peer, SHUT_WR);
    close(peer);
  }
}

static void closed_peer(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t len = sizeof address;
  listener = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(bind(listener, (struct sockaddr *)&address, len) == 0 && listen(listener, 64) == 0 &&
        getsockname(listener, (struct sockaddr *)&address, &len) == 0);
  pthread_t server = start(hang_up, NULL);
  struct sigaction action = {.sa_handler = on_sigpipe}, before;
  CHECK(sigaction(SIGPIPE, &action, &before) == 0);
  sigset_t mask, pending;
  CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0 && !sigismember(&mask, SIGPIPE));

  const char *url = text("https://127.0.0.1:%d", ntohs(address.sin_port));
  const char *dir = new_dir();
  walrusds_handle handle = open_at(config_for(net_url, net_url, ""), dir);
  OK(walrusds_put(handle, NULL, S("/k"), S("value"), &err));
  close_ok(handle);
  handle = open_at(config_for(url, url, ", \"maxRetries\": 0"), dir);
  for (int i = 0; i < (quick ? 5 : 100); i++) {
    walrusds_buf out;
    bool found;
    FAILS_ZEROED(WALRUSDS_WALRUS, NULL, out, walrusds_get(handle, NULL, S("/k"), &out, &found, &err));
    if (i % 10 == 0) CALL(WALRUSDS_WALRUS, NULL, walrusds_put(handle, NULL, S("/new"), S("v"), &err));
  }
  close_ok(handle);
  CHECK(!atomic_load(&got_sigpipe));
  /* The caller's mask is as it was, and nothing waits behind it. */
  CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0 && !sigismember(&mask, SIGPIPE));
  CHECK(sigpending(&pending) == 0 && !sigismember(&pending, SIGPIPE));
  sigaction(SIGPIPE, &before, NULL);
  shutdown(listener, SHUT_RDWR);
  join(server);
  close(listener);
}

const struct test signal_tests[] = {
    {"no signal handlers", no_handlers, 1},
    {"a closed peer is no SIGPIPE", closed_peer, 1},
    {NULL, NULL, 0},
};
