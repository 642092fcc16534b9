// Publishes to Expunge as schemas/README.md says, with an ordinary Kafka client and Go's own crypto.
//
//	publisher BOOTSTRAP AUDIENCE KEY_FILE < messages.jsonl
//
// KEY_FILE: the 32-byte seed of an Ed25519 key in hex, one line.
// Each line of the input: {"mode": "binary" | "structured", "topic", "key", "data"}. `data` is a lineage event, or a request
// without id, nonce, audience, issued_at and expires_at, which are drawn here. Prints {"id", "topic", "partition"} per line.
package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	envelopeType = "application/vnd.dsse.envelope.v1+json"
	payloadType  = "application/vnd.expunge.request+json"
	source       = "urn:expunge:publisher:go"
	inputBytes   = 1 << 20
)

type message struct {
	Mode  string         `json:"mode"`
	Topic string         `json:"topic"`
	Key   string         `json:"key"`
	Data  map[string]any `json:"data"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"` // encoding/json writes bytes in base64
}

type envelope struct {
	Payload     []byte      `json:"payload"`
	PayloadType string      `json:"payloadType"`
	Signatures  []signature `json:"signatures"`
}

func main() {
	log.SetFlags(0)
	bootstrap, audience := os.Args[1], os.Args[2]
	text, err := os.ReadFile(os.Args[3])
	check(err)
	seed, err := hex.DecodeString(strings.TrimSpace(string(text)))
	check(err)
	key := ed25519.NewKeyFromSeed(seed)
	// The default partitioner is the Java client's; idempotence and acks=all are defaults too, and so is compression by snappy.
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(bootstrap, ",")...), kgo.ClientID("go-publisher"))
	check(err)
	defer client.Close()
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, inputBytes)
	for lines.Scan() {
		var one message
		check(json.Unmarshal(lines.Bytes(), &one))
		id, record := recordOf(one, audience, key)
		sent, err := client.ProduceSync(context.Background(), record).First()
		check(err)
		check(json.NewEncoder(os.Stdout).Encode(map[string]any{"id": id, "topic": sent.Topic, "partition": sent.Partition}))
	}
	check(lines.Err())
}

func recordOf(one message, audience string, key ed25519.PrivateKey) (string, *kgo.Record) {
	id, contentType := uuid(), "application/json"
	body := marshalled(one.Data)
	if one.Topic == "expunge.requests" {
		contentType = envelopeType
		body = signed(drawn(one.Data, id, audience), key)
	}
	attributes := [][2]string{
		{"specversion", "1.0"}, {"id", id}, {"source", source}, {"type", one.Data["type"].(string)}, {"partitionkey", one.Key},
	}
	record := &kgo.Record{Topic: one.Topic, Key: []byte(one.Key), Value: body}
	if one.Mode == "structured" {
		event := map[string]any{"datacontenttype": contentType, "data_base64": base64.StdEncoding.EncodeToString(body)}
		for _, attribute := range attributes {
			event[attribute[0]] = attribute[1]
		}
		record.Value = marshalled(event)
		record.Headers = []kgo.RecordHeader{{Key: "content-type", Value: []byte("application/cloudevents+json")}}
		return id, record
	}
	for _, attribute := range attributes {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: "ce_" + attribute[0], Value: []byte(attribute[1])})
	}
	record.Headers = append(record.Headers, kgo.RecordHeader{Key: "content-type", Value: []byte(contentType)})
	return id, record
}

func drawn(data map[string]any, id, audience string) map[string]any {
	now := time.Now().UTC()
	if _, asked := data["regulation"]; asked {
		data["received_at"] = instant(now)
	}
	data["id"], data["nonce"], data["audience"] = id, hex.EncodeToString(random()), audience
	data["issued_at"], data["expires_at"] = instant(now), instant(now.Add(24*time.Hour))
	return data
}

func signed(request map[string]any, key ed25519.PrivateKey) []byte {
	payload := marshalled(request)
	pae := append([]byte(fmt.Sprintf("DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload))), payload...)
	keyID := sha256.Sum256(key.Public().(ed25519.PublicKey))
	signatures := []signature{{hex.EncodeToString(keyID[:]), ed25519.Sign(key, pae)}}
	return marshalled(envelope{payload, payloadType, signatures})
}

func uuid() string {
	drawn := random()
	drawn[6], drawn[8] = drawn[6]&0x0f|0x40, drawn[8]&0x3f|0x80 // RFC 9562, version 4
	return fmt.Sprintf("%x-%x-%x-%x-%x", drawn[:4], drawn[4:6], drawn[6:8], drawn[8:10], drawn[10:])
}

func random() []byte {
	drawn := make([]byte, 16)
	_, err := rand.Read(drawn)
	check(err)
	return drawn
}

func instant(at time.Time) string { return at.Format("2006-01-02T15:04:05.000000Z") }

func marshalled(value any) []byte {
	data, err := json.Marshal(value)
	check(err)
	return data
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
