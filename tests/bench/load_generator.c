/* Load generator for small requests: client and upstream of a proxy, in one process on one core.
 *
 * It polls without sleeping while a run lasts. On loopback the sender of a packet pays for waking the receiver (in a
 * virtual machine with an interrupt to the other core); with a peer that never sleeps the proxy wakes nobody, as with
 * a network card, which costs the sender nothing.
 *
 * Usage: load_generator UPSTREAM_PORT. It prints "ready", then reads one run per line from standard input:
 *
 *   MODE PORT FILE COUNT CONNECTIONS RATE SEED
 *
 * FILE holds the request. Modes:
 *   warm    each connection sends its next request when the response is complete; RATE is not used
 *   cold    the same with a new connection for each request
 *   even    requests are due at equal intervals, RATE a second; time counts from when a request was due
 *   random  the same with exponentially distributed intervals (independent clients), which SEED determines
 *
 * Standard input is a socket. If descriptors of connections come with a line (SCM_RIGHTS), the requests are sent on these,
 * which stay open; PORT and CONNECTIONS are not used then.
 *
 * The answer is one line: "RATE P50 P99 PAUSED" (requests a second, microseconds), or "error: REASON". PAUSED is for
 * how long together this process was kept from polling, by other processes or by the host of a virtual machine: it looks
 * at the clock at least once per event, and counts what is longer than any of its own work.
 * The upstream responds to a target /n/N with N bytes of JSON type. It reads Content-Length and chunked bodies. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_BYTES = 128 * 1024, REQUEST_BYTES = 64 * 1024, MAX_CONNECTIONS = 1024, MAX_EVENTS = 256,
       MAX_GIVEN = 253 /* the kernel's SCM_MAX_FD */ };
static const double STALL_SECONDS = 10;
/* An event takes some 10 us. */
static const double PAUSE_SECONDS = 200e-6;
/* For the proxy to end what it does after the first requests of its connections. */
static const double SETTLE_SECONDS = 20e-3;

enum role { LISTENER, COMMANDS, UPSTREAM, CLIENT };

struct connection {
  enum role role;
  int fd;
  int length;            /* bytes in the buffer */
  long body_left;        /* upstream: bytes of a request body that have not come yet */
  int is_chunked;        /* upstream: inside a chunked request body */
  long response_bytes;   /* upstream: body of the response that is due */
  double began;          /* client: when the request under way was sent, or was due */
  char buffer[BUFFER_BYTES];
};

enum mode { WARM, COLD, PACED };

struct run {
  enum mode mode;
  int port, connection_count;
  long count, sent, done;
  int unused_count;      /* paced: connections whose first response is not complete */
  double rate, began;
  double *due;           /* paced: when each request is due, in seconds since `began` */
  double *seconds;       /* how long each took */
  struct connection *clients[MAX_CONNECTIONS];
  struct connection *idle[MAX_CONNECTIONS];
  int idle_count;
  double looked;         /* when the clock was last looked at */
  double paused;         /* seconds of all pauses */
  const char *error;
};

static int poller;
static int is_running;
static struct run run;
static char request[REQUEST_BYTES];
static int request_length;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Count the time since the last call, if this process was paused. */
static void look(void) {
  double at = now();
  if (at - run.looked > PAUSE_SECONDS) run.paused += at - run.looked;
  run.looked = at;
}

static struct connection *watch(enum role role, int fd) {
  struct connection *c = calloc(1, sizeof *c);
  c->role = role;
  c->fd = fd;
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
  return c;
}

static void send_all(int fd, const char *data, long length) {
  while (length > 0) {
    ssize_t count = write(fd, data, length);
    if (count < 0 && errno != EAGAIN) return; /* the reader of this connection sees the error */
    if (count > 0) {
      data += count;
      length -= count;
    }
  }
}

static void drop_front(struct connection *c, long count) {
  memmove(c->buffer, c->buffer + count, c->length - count);
  c->length -= count;
}

/* Return the value of a header in a head that ends with a zero byte, or NULL. */
static const char *find_header(const char *head, const char *name) {
  const char *at = strcasestr(head, name);
  return at ? at + strlen(name) : NULL;
}

/* ---- upstream ---- */

static void respond(struct connection *c) {
  static char response[REQUEST_BYTES + 512];
  long body = c->response_bytes < REQUEST_BYTES ? c->response_bytes : REQUEST_BYTES;
  int head = sprintf(response,
                     "HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
                     "Content-Type: application/json\r\nContent-Length: %ld\r\n\r\n", body);
  memset(response + head, 'a', body);
  send_all(c->fd, response, head + body);
}

/* Take one head off the buffer. Return 0 if it is not complete. */
static int take_head(struct connection *c) {
  char *end = memmem(c->buffer, c->length, "\r\n\r\n", 4);
  if (!end) return 0;
  *end = 0;
  const char *target = strchr(c->buffer, ' ');
  c->response_bytes = target && !strncmp(target + 1, "/n/", 3) ? atol(target + 4) : 2;
  const char *length = find_header(c->buffer, "\r\ncontent-length:");
  c->body_left = length ? atol(length) : 0;
  c->is_chunked = find_header(c->buffer, "\r\ntransfer-encoding: chunked") != NULL;
  drop_front(c, end + 4 - c->buffer);
  if (!c->body_left && !c->is_chunked) respond(c);
  return 1;
}

static void serve(struct connection *c) {
  ssize_t count = read(c->fd, c->buffer + c->length, BUFFER_BYTES - 1 - c->length);
  if (count < 0 && errno == EAGAIN) return;
  if (count <= 0) {
    close(c->fd);
    free(c);
    return;
  }
  c->length += count;
  for (;;) {
    if (c->body_left) {
      long part = c->body_left < c->length ? c->body_left : c->length;
      drop_front(c, part);
      c->body_left -= part;
      if (c->body_left) return;
      respond(c);
    } else if (c->is_chunked) {
      /* Good enough for bodies of this benchmark, which do not contain the last chunk's bytes. */
      char *last = memmem(c->buffer, c->length, "0\r\n\r\n", 5);
      if (!last) return;
      drop_front(c, last + 5 - c->buffer);
      c->is_chunked = 0;
      respond(c);
    } else if (!take_head(c)) {
      return;
    }
  }
}

static void accept_one(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
  if (fd < 0) return;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  watch(UPSTREAM, fd);
}

/* ---- client ---- */

static struct sockaddr_in loopback(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

static struct connection *watch_client(int fd) {
  fcntl(fd, F_SETFL, O_NONBLOCK);
  return watch(CLIENT, fd);
}

/* Connect, blocking: on loopback the kernel completes a connection without the proxy. */
static struct connection *open_client(void) {
  struct sockaddr_in address = loopback(run.port);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, (void *)&address, sizeof address)) {
    run.error = "cannot connect";
    close(fd);
    return NULL;
  }
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
  return watch_client(fd);
}

static void close_client(struct connection *c) {
  /* One that was given stays open elsewhere, so that closing it here does not end the watch. */
  epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, NULL);
  close(c->fd);
  free(c);
}

static void send_request(struct connection *c, double began) {
  run.sent++;
  c->began = began;
  c->length = 0;
  send_all(c->fd, request, request_length);
}

static int is_complete(struct connection *c) {
  char *end = memmem(c->buffer, c->length, "\r\n\r\n", 4);
  if (!end) return 0;
  if (c->length < 12 || memcmp(c->buffer + 9, "200", 3)) {
    run.error = "a response is not 200";
    return 0;
  }
  *end = 0;
  const char *length = find_header(c->buffer, "\r\ncontent-length:");
  int complete = length ? c->length >= end + 4 - c->buffer + atol(length)
                        : !memcmp(c->buffer + c->length - 5, "0\r\n\r\n", 5);
  *end = '\r';
  return complete;
}

/* Paced: every connection has been used once; the requests that are measured begin soon. */
static void begin_paced(void) {
  run.sent = 0;
  run.paused = 0;
  run.looked = now();
  run.began = run.looked + SETTLE_SECONDS;
}

/* A response is complete: send the next request on this connection, or on a new one, or keep it for later. */
static void continue_client(struct connection *c) {
  if (run.mode == PACED) {
    run.idle[run.idle_count++] = c;
    if (run.unused_count) {
      if (!--run.unused_count) begin_paced();
      return;
    }
  }
  run.seconds[run.done++] = now() - c->began;
  if (run.mode == PACED) return;
  if (run.sent == run.count) return;
  if (run.mode == COLD) {
    double began = now();
    int i = 0;
    while (run.clients[i] != c) i++;
    close_client(c);
    run.clients[i] = c = open_client();
    if (c) send_request(c, began);
    return;
  }
  send_request(c, now());
}

static void read_response(struct connection *c) {
  ssize_t count = read(c->fd, c->buffer + c->length, BUFFER_BYTES - 1 - c->length);
  if (count < 0 && errno == EAGAIN) return;
  if (count <= 0) {
    run.error = "the proxy closed a connection";
    return;
  }
  c->length += count;
  c->buffer[c->length] = 0;
  if (is_complete(c)) continue_client(c);
}

/* ---- runs ---- */

static void plan(int is_random, long seed) {
  double at = 0;
  srand48(seed);
  for (long i = 0; i < run.count; i++) {
    at += (is_random ? -log(1 - drand48()) : 1) / run.rate;
    run.due[i] = at;
  }
}

/* Begin the run of a line. `given` are descriptors of connections that came with it. */
static void start_run(const char *line, const int *given, int given_count) {
  char mode[16], file[512];
  long seed = 0;
  run = (struct run){0};
  if (sscanf(line, "%15s %d %511s %ld %d %lf %ld", mode, &run.port, file, &run.count, &run.connection_count, &run.rate,
             &seed) != 7 ||
      run.connection_count > MAX_CONNECTIONS || run.count < 1) {
    run.error = "not a run";
    return;
  }
  FILE *source = fopen(file, "rb");
  request_length = source ? fread(request, 1, sizeof request, source) : 0;
  if (source) fclose(source);
  run.mode = !strcmp(mode, "warm") ? WARM : !strcmp(mode, "cold") ? COLD : PACED;
  run.due = calloc(run.count, sizeof *run.due);
  run.seconds = calloc(run.count, sizeof *run.seconds);
  if (given_count) run.connection_count = given_count;
  for (int i = 0; i < run.connection_count && !run.error; i++)
    run.clients[i] = given_count ? watch_client(given[i]) : open_client();
  if (run.error) return;
  if (run.mode == PACED) {
    plan(!strcmp(mode, "random"), seed);
    run.unused_count = run.connection_count;
  }
  run.began = run.looked = now();
  for (int i = 0; i < run.connection_count && (run.mode == PACED || run.sent < run.count); i++)
    send_request(run.clients[i], now());
}

/* Send the requests that are due, as long as a connection is idle. */
static void send_due(void) {
  while (run.sent < run.count && run.idle_count && run.began + run.due[run.sent] <= now())
    send_request(run.idle[--run.idle_count], run.began + run.due[run.sent]);
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void end_run(void) {
  double seconds = now() - run.began;
  for (int i = 0; i < run.connection_count; i++)
    if (run.clients[i]) close_client(run.clients[i]);
  if (run.error) {
    printf("error: %s, after %ld responses\n", run.error, run.done);
  } else {
    qsort(run.seconds, run.done, sizeof *run.seconds, compare);
    printf("%.1f %.2f %.2f %.2f\n", run.done / seconds, run.seconds[run.done / 2] * 1e6,
           run.seconds[run.done * 99 / 100] * 1e6, run.paused * 1e6);
  }
  free(run.due);
  free(run.seconds);
  run.error = NULL;
  is_running = 0;
}

/* Return whether the run under way is over. With the last response it is: a proxy may close its connections then. */
static int is_over(void) { return run.error || (is_running && run.done == run.count); }

/* Read a line with a run from standard input. Return 0 at its end. */
static int read_command(void) {
  char line[1024];
  union {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(MAX_GIVEN * sizeof(int))];
  } control;
  struct iovec data = {line, sizeof line - 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t count = recvmsg(0, &message, 0);
  if (count <= 0) return 0;
  line[count] = 0;
  struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
  is_running = 1;
  start_run(line, rights ? (int *)CMSG_DATA(rights) : NULL, rights ? (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0);
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in address = loopback(atoi(argv[1]));
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) {
    perror("load_generator: bind");
    return 1;
  }
  poller = epoll_create1(0);
  watch(LISTENER, listener);
  watch(COMMANDS, 0);
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("ready\n");
  double last = 0;
  for (;;) {
    struct epoll_event events[MAX_EVENTS];
    int count = epoll_wait(poller, events, MAX_EVENTS, is_running ? 0 : -1);
    if (is_running && count) last = now();
    for (int i = 0; i < count && !is_over(); i++) {
      struct connection *c = events[i].data.ptr;
      if (c->role == LISTENER) accept_one(c->fd);
      else if (c->role == UPSTREAM) serve(c);
      else if (c->role == CLIENT) read_response(c);
      else if (!read_command()) return 0;
      else last = now();
      look();
    }
    if (!is_running) continue;
    look();
    if (run.mode == PACED && !run.unused_count && !run.error) send_due();
    if (now() - last > STALL_SECONDS) run.error = "no response for 10 s";
    if (is_over()) end_run();
  }
}
