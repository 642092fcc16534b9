// Checks a bundle's log layer with golang.org/x/mod, the code behind Go's own checksum database, and nothing of Expunge:
// the checkpoint is signed by the log key in your policy file, and every statement is in the log that it commits to.
//
//	go run . BUNDLE-DIRECTORY POLICY.json
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type policy struct {
	Origin string `json:"origin"`
	LogKey string `json:"log_key"`
}

type entry struct {
	Envelope json.RawMessage `json:"envelope"` // the log entry is these bytes, as they stand
	Index    int64           `json:"index"`
	Proof    []string        `json:"proof"`
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func checkpoint(signed []byte, trusted policy) tlog.Tree {
	verifier := must(note.NewVerifier(trusted.LogKey))
	opened := must(note.Open(signed, note.VerifierList(verifier)))
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != trusted.Origin {
		log.Fatal("expected a checkpoint of the log that the policy names")
	}
	root := must(base64.StdEncoding.DecodeString(lines[2]))
	if len(root) != tlog.HashSize {
		log.Fatal("expected a root of 32 bytes")
	}
	return tlog.Tree{N: must(strconv.ParseInt(lines[1], 10, 64)), Hash: tlog.Hash(root)}
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: byhand BUNDLE-DIRECTORY POLICY.json")
	}
	var trusted policy
	if err := json.Unmarshal(must(os.ReadFile(os.Args[2])), &trusted); err != nil {
		log.Fatal(err)
	}
	tree := checkpoint(must(os.ReadFile(filepath.Join(os.Args[1], "log", "checkpoint"))), trusted)
	statements := bufio.NewScanner(bytes.NewReader(must(os.ReadFile(filepath.Join(os.Args[1], "sweep", "statements.jsonl")))))
	statements.Buffer(nil, 1<<20)
	count := 0
	for ; statements.Scan(); count++ {
		var one entry
		if err := json.Unmarshal(statements.Bytes(), &one); err != nil {
			log.Fatal(err)
		}
		var proof tlog.RecordProof
		for _, text := range one.Proof {
			proof = append(proof, tlog.Hash(must(hex.DecodeString(text))))
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, one.Index, tlog.RecordHash(one.Envelope)); err != nil {
			log.Fatalf("statement %d: %v", one.Index, err)
		}
	}
	if statements.Err() != nil || count == 0 {
		log.Fatal("expected statements, one per line")
	}
	fmt.Printf("%d statements are in log %s of size %d\n", count, trusted.Origin, tree.N)
}
