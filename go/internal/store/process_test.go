package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets the test binary play another server: STORE_TEST_ROLE says what it does with the store in STORE_TEST_DIR.
func TestMain(m *testing.M) {
	role, dir := os.Getenv("STORE_TEST_ROLE"), os.Getenv("STORE_TEST_DIR")
	if role == "" {
		os.Exit(m.Run())
	}
	s, err := Open(Params{Dir: dir})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	switch role {
	case "hold":
		fmt.Println("open")
		select {}
	case "upload": // sends half of a blob and waits to be killed
		s.PutBlob(digestOf(bigBlob), io.MultiReader(bytes.NewReader(bigBlob[:len(bigBlob)/2]), waiting{}))
	case "limited": // may write no file larger than a part of the blob, as on a full disk
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 100_000, Max: 100_000}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		created, err := s.PutBlob(digestOf(bigBlob), bytes.NewReader(bigBlob))
		fmt.Printf("%v: %v\n", created, err)
	}
}

var bigBlob = bytes.Repeat([]byte("0123456789abcdef"), 1<<16)

type waiting struct{}

func (waiting) Read([]byte) (int, error) {
	fmt.Println("half")
	select {}
}

// helper starts the test binary in a role and waits for the line that it says.
func helper(t *testing.T, role, dir, says string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_ROLE="+role, "STORE_TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if !strings.HasPrefix(line, says) {
		t.Fatalf("got %q, %v, want %q", line, err, says)
	}
	return cmd
}

func TestKilledInTheMiddleOfAnUpload(t *testing.T) {
	dir := t.TempDir()
	cmd := helper(t, "upload", dir, "half")
	temp := filepath.Join(dir, stateDir, tempDir)
	if len(must(os.ReadDir(temp))) != 1 {
		t.Fatal("the upload does not write where this test looks")
	}
	cmd.Process.Kill()
	cmd.Wait()

	s := open(t, Params{Dir: dir})
	if left := blobs(t, s); len(left) != 0 {
		t.Errorf("left among the blobs: %v", left)
	}
	if left := must(os.ReadDir(temp)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if created, err := s.PutBlob(digestOf(bigBlob), bytes.NewReader(bigBlob)); !created || err != nil {
		t.Errorf("got %v, %v", created, err)
	}
}

func TestDiskThatTakesNoMore(t *testing.T) {
	dir := t.TempDir()
	cmd := helper(t, "limited", dir, "false: storing a blob failed: "+syscall.EFBIG.Error())
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	s := open(t, Params{Dir: dir})
	if has, err := s.HasBlob(digestOf(bigBlob)); has || err != nil {
		t.Errorf("got %v, %v", has, err)
	}
	if left := must(os.ReadDir(filepath.Join(dir, stateDir, tempDir))); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := os.Stat(s.blobPath(digestOf(bigBlob))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
