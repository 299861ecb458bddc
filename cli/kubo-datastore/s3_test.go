package main

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sort"
	"strings"
	"sync"
	"testing"

	ds "github.com/ipfs/go-datastore"
	s3ds "github.com/ipfs/go-ds-s3"
)

// A bucketServer is as much of S3 as a datastore needs: one bucket, whose lists have 150 entries a
// page.
type bucketServer struct {
	*httptest.Server
	mutex   sync.Mutex
	objects map[string][]byte
	lists   int
	// broken answers 500 instead, where it says so.
	broken func(r *http.Request) bool
}

func serveBucket(t *testing.T) *bucketServer {
	s := &bucketServer{objects: map[string][]byte{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

type listing struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	IsTruncated           bool
	NextContinuationToken string `xml:",omitempty"`
	Contents              []struct {
		Key  string
		Size int
	}
}

func (s *bucketServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/a-bucket")
	name = strings.TrimPrefix(name, "/")
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch {
	case !strings.Contains(r.Header.Get("Authorization"), "Credential=the-key/"):
		refuse(http.StatusForbidden, "InvalidAccessKeyId")
	case s.broken != nil && s.broken(r):
		refuse(http.StatusInternalServerError, "InternalError")
	case !ok:
		refuse(http.StatusNotFound, "NoSuchBucket")
	case r.Method == http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err)
		}
		s.objects[name] = body
	case name == "":
		s.lists++
		var names []string
		for name := range s.objects {
			if strings.HasPrefix(name, r.FormValue("prefix")) && name > r.FormValue("continuation-token") {
				names = append(names, name)
			}
		}
		sort.Strings(names)
		var page listing
		if len(names) > 150 {
			names, page.IsTruncated = names[:150], true
			page.NextContinuationToken = names[149]
		}
		for _, name := range names {
			page.Contents = append(page.Contents, struct {
				Key  string
				Size int
			}{name, len(s.objects[name])})
		}
		if err := xml.NewEncoder(w).Encode(page); err != nil {
			panic(err)
		}
	default:
		object, ok := s.objects[name]
		if !ok {
			refuse(http.StatusNotFound, "NoSuchKey")
			return
		}
		w.Write(object)
	}
}

// kind is a repo whose blocks are in the bucket: mounted at /blocks, or at /.
func (s *bucketServer) kind(root, mountpoint string) kind {
	at := strings.TrimSuffix(mountpoint, "/")
	prefix := strings.TrimPrefix("/blocks", at)
	return kind{
		name: "s3ds",
		make: func(t *testing.T, _ string) ds.Batching {
			store, err := s3ds.NewS3Datastore(s3ds.Config{
				Region: "here", Bucket: "a-bucket", AccessKey: "the-key", SecretKey: "TOPSECRET",
				RegionEndpoint: s.URL, RootDirectory: root,
			})
			check(t, err)
			return store
		},
		spec: fmt.Sprintf(`{"type":"mount","mounts":[
			{"mountpoint":"/other","type":"mem"},
			{"mountpoint":%q,"type":"measure","prefix":"s3.datastore","child":
			 {"type":"s3ds","region":"here","bucket":"a-bucket","accessKey":"the-key","secretKey":"TOPSECRET",
			  "regionEndpoint":%q,"rootDirectory":%q,"workers":10}}]}`, mountpoint, s.URL, root),
		prefix: prefix,
	}
}

func TestABucketIsRead(t *testing.T) {
	all := blocks()
	for _, c := range []struct{ root, mountpoint string }{{"", "/blocks"}, {"ipfs/one", "/blocks"}, {"/ipfs/", "/"}, {"", "/"}} {
		t.Run(c.root+" at "+c.mountpoint, func(t *testing.T) {
			server := serveBucket(t)
			repo := makeRepo(t, server.kind(c.root, c.mountpoint), all)
			// Another repo in the same bucket, and what a console makes, where they can be told.
			if c.root != "" {
				server.objects["ipfs2/blocks/CIQA"] = []byte("of another")
				server.objects[under(c.root)] = nil
			}
			for _, args := range [][]string{{}, {"--readers", "1"}, {"--no-lock"}} {
				r := runWith(t, "", append(args, "--repo", repo)...)
				if r.code != 0 {
					t.Fatalf("%v: %d %s", args, r.code, r.stderr)
				}
				same(t, r.blocks, all)
			}
			if server.lists < 9 {
				t.Errorf("%d pages were listed of 3 times 3 or more", server.lists)
			}
		})
	}
}

func TestAnEmptyBucketIsAWholeStream(t *testing.T) {
	server := serveBucket(t)
	r := runWith(t, "", "--repo", makeRepo(t, server.kind("", "/blocks"), nil))
	if r.code != 0 || len(r.blocks) != 0 {
		t.Errorf("%d, %d blocks: %s", r.code, len(r.blocks), r.stderr)
	}
}

func TestABucketThatFailsIsNoWholeStream(t *testing.T) {
	all := blocks()
	server := serveBucket(t)
	repo := makeRepo(t, server.kind("", "/blocks"), all)
	var one string
	for key := range all {
		one = key
	}
	// A block that the list names and the bucket does not give.
	server.broken = func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, one) }
	r := runWith(t, "", "--repo", repo)
	if r.code != exitUnreadable || len(r.blocks) != len(all)-1 || !strings.Contains(r.stderr, one) {
		t.Errorf("%d, %d blocks: %s", r.code, len(r.blocks), r.stderr)
	}
	// A page of the list.
	server.broken = func(r *http.Request) bool { return r.FormValue("continuation-token") != "" }
	r = runWith(t, "", "--repo", repo)
	if r.code != exitError || !strings.Contains(r.stderr, "InternalError") {
		t.Errorf("%d: %s", r.code, r.stderr)
	}
	server.broken = nil
	for _, c := range []struct{ from, to, text string }{
		{`"bucket":"a-bucket"`, `"bucket":"of-another"`, "NoSuchBucket"},
		{`"accessKey":"the-key"`, `"accessKey":"another"`, "InvalidAccessKeyId"},
		{`"region":"here",`, ``, `"region": nothing found, a text expected`},
		{`"bucket":"a-bucket"`, `"bucket":7`, `"bucket": a number found, a text expected`},
		{`"secretKey":"TOPSECRET"`, `"secretKey":["TOPSECRET"]`, `"secretKey": a list found, a text expected`},
	} {
		spec := strings.Replace(server.kind("", "/blocks").spec, c.from, c.to, 1)
		r := runWith(t, spec, "--spec", "-", "--repo", repo)
		if r.code != exitError || !strings.Contains(r.stderr, c.text) || len(r.blocks) > 0 {
			t.Errorf("%s: %d %s", c.to, r.code, r.stderr)
		}
		if strings.Contains(r.stderr, "TOPSECRET") {
			t.Errorf("a secret is shown: %s", r.stderr)
		}
	}
}

func TestAReadOfABucketIsInterrupted(t *testing.T) {
	server := serveBucket(t)
	repo := makeRepo(t, server.kind("", "/blocks"), blocks())
	ctx, stop := context.WithCancel(context.Background())
	server.broken = func(r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/CIQ") {
			stop()
		}
		return false
	}
	var stderr strings.Builder
	code := run(ctx, []string{"read", "--repo", repo}, nil, io.Discard, &stderr)
	if code != exitInterrupted {
		t.Errorf("%d: %s", code, stderr.String())
	}
}
