'use strict';
// dicomweb-client against a served archive: stores the files named as arguments, then searches and retrieves what it stored.
// URL and TOKEN come from the environment, the certificate to trust from NODE_EXTRA_CA_CERTS; prints one JSON object.

const { createHash } = require('crypto');
const { readFileSync } = require('fs');

global.XMLHttpRequest = require('xhr2');
const { api } = require('dicomweb-client');

const files = process.argv.slice(2);
const client = new api.DICOMwebClient({
  url: process.env.URL,
  headers: { Authorization: `Bearer ${process.env.TOKEN}` },
});

function sha256(buffer) {
  return createHash('sha256').update(Buffer.from(buffer)).digest('hex');
}

function exact(path) {
  const data = readFileSync(path);
  return data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
}

function one(dataset, tag) {
  return dataset[tag].Value[0];
}

async function refused(asked) {
  try {
    await asked;
  } catch (error) {
    return error.status || error.message || String(error);
  }
  return null;
}

async function main() {
  const told = { stored: await client.storeInstances({ datasets: files.map(exact) }) };
  if (typeof told.stored === 'string') told.stored = JSON.parse(told.stored);

  const studies = await client.searchForStudies({ queryParams: { PatientName: 'Canary*', includefield: '00081030', limit: 9, offset: 0 } });
  told.studies = studies.map(study => one(study, '0020000D'));
  told.none = await client.searchForStudies({ queryParams: { PatientID: 'nobody' } });
  const studyInstanceUID = told.studies[0];
  told.series = (await client.searchForSeries({ studyInstanceUID })).map(series => one(series, '0020000E'));
  told.everySeries = (await client.searchForSeries()).length;
  const seriesInstanceUID = told.series[0];
  told.instances = (await client.searchForInstances({ studyInstanceUID, seriesInstanceUID })).map(found => one(found, '00080018')).sort();
  told.everyInstance = (await client.searchForInstances()).length;
  const sopInstanceUID = told.instances[0];
  const address = { studyInstanceUID, seriesInstanceUID, sopInstanceUID };

  told.metadata = {
    study: (await client.retrieveStudyMetadata({ studyInstanceUID })).length,
    series: (await client.retrieveSeriesMetadata({ studyInstanceUID, seriesInstanceUID })).length,
  };
  const metadata = await client.retrieveInstanceMetadata(address);
  const described = Array.isArray(metadata) ? metadata[0] : metadata;
  told.metadata.instance = one(described, '00080018');
  told.metadata.name = one(described, '00100010');

  told.instance = sha256(await client.retrieveInstance(address));
  told.ofSeries = (await client.retrieveSeries({ studyInstanceUID, seriesInstanceUID })).map(sha256).sort();
  told.ofStudy = (await client.retrieveStudy({ studyInstanceUID })).map(sha256).sort();

  const octets = [{ mediaType: 'application/octet-stream', transferSyntaxUID: '1.2.840.10008.1.2.1' }];
  const frames = { ...address, frameNumbers: '1' };
  const plain = await client.retrieveInstanceFrames(frames);
  told.frame = sha256(plain[0].buffer || plain[0]);
  const asked = await client.retrieveInstanceFrames({ ...frames, mediaTypes: octets });
  told.frameAsked = sha256(asked[0].buffer || asked[0]);

  told.bulk = (await client.retrieveBulkData({ BulkDataURI: described['7FE00010'].BulkDataURI })).map(sha256);
  const single = new api.DICOMwebClient({ url: process.env.URL, headers: client.headers, singlepart: 'bulkdata' });
  const part = { Accept: 'application/octet-stream', Range: 'bytes=4-19' };
  told.bulkRange = (await single.retrieveBulkData({ BulkDataURI: described['7FE00010'].BulkDataURI, headers: part })).map(sha256);

  told.rendered = {};
  for (const mediaType of ['image/jpeg', 'image/png']) {
    const mediaTypes = [{ mediaType }];
    const pictures = [
      await client.retrieveInstanceRendered({ ...address, mediaTypes }),
      await client.retrieveInstanceRendered({ ...address, mediaTypes, queryParams: { window: '100,50,linear', viewport: '8,6' } }),
      await client.retrieveInstanceFramesRendered({ ...frames, mediaTypes }),
      await client.retrieveInstanceThumbnail({ ...address, mediaTypes }),
    ];
    told.rendered[mediaType] = pictures.map(picture => Buffer.from([].concat(picture)[0]).toString('base64'));
  }
  told.uri = client.buildInstanceWadoURIUrl({ ...address, contentType: 'application/dicom', transferSyntax: '*' });

  told.missing = await refused(client.retrieveInstanceMetadata({ ...address, sopInstanceUID: '1.2.3.4.5.6' }));
  told.again = await client.storeInstances({ datasets: [exact(files[0])] });
  if (typeof told.again === 'string') told.again = JSON.parse(told.again);
  process.stdout.write(`${JSON.stringify(told)}\n`);
}

console.warn = () => {};
console.log = () => {};
main().catch(error => {
  process.stderr.write(`${error.stack || error.message || JSON.stringify(error)} ${error.status || ''} ${error.response || ''}\n`);
  process.exitCode = 1;
});
