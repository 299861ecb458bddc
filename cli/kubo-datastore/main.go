// Command walrusds-kubo-datastore reads the blocks of a repo on one of Kubo's own datastores, or in
// a bucket of S3, with the libraries that Kubo uses for them, and writes them to standard output for
// `walrusds import`.
//
// # The stream
//
// All numbers are little-endian.
//
//	8 bytes            "WDSBLK1\n"
//	for each block:    u32 length of the key, u32 length of the value, key, value
//	at the end:        u32 0xFFFFFFFF, u64 number of blocks
//
// A key is the datastore's key behind the prefix, such as "/CIQ…". Blocks come in no order. A stream
// without its end is not whole, and the program then ends with another exit code than 0.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

const usage = `Usage: walrusds-kubo-datastore read [options]

Writes the blocks of a repo on one of Kubo's datastores to standard output, for walrusds import.
Nothing may write to the datastore meanwhile; the repo's lock is taken, so that no daemon runs.

  --repo DIR      the repo; $IPFS_PATH or ~/.ipfs if neither this nor --spec is given
  --spec FILE     a Datastore.Spec, or the entry of one mount (- for standard input), instead of the
                  one in the repo's config. Relative paths in it are taken from the repo
  --prefix KEY    what comes before the keys of blocks (default /blocks)
  --readers N     blocks that are read at a time (default 16)
  --no-lock       reads without the repo's lock: blocks that are removed meanwhile are left out
  --recover       opens the datastore as Kubo does, which may mend and change it. Needed after a
                  crash, if the error says so

Exit codes: 0 all blocks were read, 1 an error, 2 the command line is wrong, 3 some blocks could
not be read (all others were), 4 another program uses the repo or the datastore, 130 interrupted.
`

// Exit codes; those of walrusds.
const (
	exitFine        = 0
	exitError       = 1
	exitUsage       = 2
	exitUnreadable  = 3
	exitLocked      = 4
	exitInterrupted = 130
)

// A usageError is a command line that is wrong.
type usageError string

func (e usageError) Error() string { return string(e) }

// A lockedError says that another program uses the repo or the datastore.
type lockedError string

func (e lockedError) Error() string { return string(e) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program. Errors go to stderr, one line each.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := command(ctx, args, stdin, stdout, stderr)
	if err == nil {
		return exitFine
	}
	code := exitError
	switch {
	case errors.As(err, new(usageError)):
		code = exitUsage
	case errors.As(err, new(unreadableError)):
		code = exitUnreadable
	case errors.As(err, new(lockedError)):
		code = exitLocked
	case ctx.Err() != nil:
		code, err = exitInterrupted, errors.New("interrupted")
	}
	fmt.Fprintf(stderr, "error: %v\n", err)
	return code
}

type options struct {
	repo, spec, prefix string
	readers            int
	noLock, recover    bool
}

func command(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) > 0 && (args[0] == "help" || args[0] == "-h" || args[0] == "--help") {
		_, err := io.WriteString(stdout, usage)
		return err
	}
	if len(args) == 0 || args[0] != "read" {
		return usageError(fmt.Sprintf("the command is missing: %q found, read or help expected", strings.Join(args, " ")))
	}
	var o options
	flags := flag.NewFlagSet("read", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.repo, "repo", "", "")
	flags.StringVar(&o.spec, "spec", "", "")
	flags.StringVar(&o.prefix, "prefix", "", "")
	flags.IntVar(&o.readers, "readers", 0, "")
	flags.BoolVar(&o.noLock, "no-lock", false, "")
	flags.BoolVar(&o.recover, "recover", false, "")
	switch err := flags.Parse(args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		_, err := io.WriteString(stdout, usage)
		return err
	case err != nil:
		return usageError(err.Error())
	case flags.NArg() > 0:
		return usageError(fmt.Sprintf("%q is no option", flags.Arg(0)))
	case o.readers < 0 || o.readers > 1024:
		return usageError(fmt.Sprintf("--readers: %d found, 1 to 1024 expected", o.readers))
	}
	if o.spec == "" && o.repo == "" {
		var err error
		if o.repo, err = ownRepo(); err != nil {
			return err
		}
	}
	return read(ctx, o, stdin, stdout, stderr)
}

// ownRepo is the repo that the ipfs program would use.
func ownRepo() (string, error) {
	if repo := os.Getenv("IPFS_PATH"); repo != "" {
		return repo, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usageError("no repo is named: give --repo or --spec, or set IPFS_PATH")
	}
	return filepath.Join(home, ".ipfs"), nil
}

func read(ctx context.Context, o options, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	leaf, err := locate(o, stdin)
	if err != nil {
		return err
	}
	if !o.noLock {
		unlock, err := lockRepo(o.repo)
		if err != nil {
			return err
		}
		defer unlock()
	}
	store, err := open(leaf, o)
	if err != nil {
		return fmt.Errorf("%s: %w", leaf, err)
	}
	defer func() {
		if closed := store.Close(); closed != nil && err == nil {
			err = fmt.Errorf("%s: closing it: %w", leaf, closed)
		}
	}()
	readers := o.readers
	if readers == 0 {
		readers = 16
	}
	out := newStream(bufio.NewWriterSize(stdout, 1<<20), stderr, leaf.prefix, o.noLock)
	if err := out.begin(); err != nil {
		return err
	}
	if err := store.stream(ctx, leaf.prefix, readers, out); err != nil {
		// What was read so far is not lost on the reader.
		if flushed := out.flush(); flushed != nil {
			return flushed
		}
		return fmt.Errorf("%s: after %d blocks: %w", leaf, out.count, err)
	}
	return out.end()
}
